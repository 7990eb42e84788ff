"""Search of a million made embeddings for the nearest of some probes: exact beside bare matrix
products of the same shape, then by inverted lists with their recall.

    python tests/bench/bench_search.py [--rows 1000000] [--probes 1000]

(`OMP_NUM_THREADS=1` before it for one thread.)

Each block of the gallery is made, multiplied by torch and by numpy, and searched, in turn, so that
other work on the machine hits all alike. The embeddings lie near a space of 64 dimensions, and each
probe is near one row, as faces are; how many lists have to be looked through depends on that.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manyfaces.train.evaluation.nearest import (
    InvertedLists,
    Nearest,
    exact_search,
    recall,
    unit,
)

DIM, INNER, BLOCK = 512, 64, 1 << 16
SPREAD, PROBE_SPREAD = 0.02, 0.06
"""Noise beside the 64 dimensions, by dimension: of the gallery, and of a probe beside its row."""

CONSOLE = Console()
Floats = NDArray[np.float32]


class Made:
    """A gallery that is made block by block, the same each time, and its probes."""

    def __init__(self, rows: int, probes: int) -> None:
        random = np.random.default_rng(0)
        self.rows = rows
        self.axes = random.standard_normal((INNER, DIM), np.float32) / np.sqrt(INNER * DIM)
        self.rows_of = np.sort(random.choice(rows, probes, replace=False))
        self.probes = np.empty((probes, DIM), np.float32)
        for first, block in self.blocks():
            here = (self.rows_of >= first) & (self.rows_of < first + len(block))
            own = block[self.rows_of[here] - first]
            noise = random.standard_normal(own.shape, np.float32)
            self.probes[here] = unit(own + PROBE_SPREAD * noise)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        for first in range(0, self.rows, BLOCK):
            random = np.random.default_rng((1, first))
            count = min(BLOCK, self.rows - first)
            inner = random.standard_normal((count, INNER), np.float32)
            beside = random.standard_normal((count, DIM), np.float32)
            yield first, unit(inner @ self.axes * np.sqrt(INNER) + SPREAD * beside)


class Seconds(NamedTuple):
    """By the clock, and of the processor over all threads: the latter tells more where other work
    shares the cores, less where threads spin while they wait."""

    clock: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> "Seconds":
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: "Seconds") -> "Seconds":
        return Seconds(self.clock - begun.clock, self.processor - begun.processor)

    def plus(self, more: "Seconds") -> "Seconds":
        return Seconds(self.clock + more.clock, self.processor + more.processor)


class Products:
    """Seconds of bare products of the probes with each block, by library."""

    def __init__(self, probes: Floats) -> None:
        self.seconds = {"torch.mm": Seconds(), "numpy.matmul": Seconds()}
        self._probes = probes
        self._out = np.empty((len(probes), BLOCK), np.float32)

    def time(self, block: Floats) -> None:
        out = self._out[:, : len(block)]
        work: dict[str, Callable[[], object]] = {
            "torch.mm": lambda: torch.mm(
                torch.from_numpy(self._probes), torch.from_numpy(block).T, out=torch.from_numpy(out)
            ),
            "numpy.matmul": lambda: np.matmul(self._probes, block.T, out=out),
        }
        for name, multiply in work.items():
            begun = Seconds.now()
            multiply()
            self.seconds[name] = self.seconds[name].plus(Seconds.now().since(begun))


def exact(made: Made, k: int) -> tuple[Nearest, Seconds, dict[str, Seconds]]:
    """What is found, the seconds of the search, and those of the bare products."""
    products, outside = Products(made.probes), Seconds()

    def gallery() -> Iterator[Floats]:
        nonlocal outside
        begun = Seconds.now()
        for _, block in made.blocks():
            products.time(block)
            outside = outside.plus(Seconds.now().since(begun))
            yield block
            begun = Seconds.now()
        outside = outside.plus(Seconds.now().since(begun))

    begun = Seconds.now()
    found = exact_search(made.probes, gallery(), k)
    return found, Seconds.now().since(begun).since(outside), products.seconds


def inverted(made: Made, found: Nearest, exact_s: float) -> None:
    """Print what inverted lists cost, and what they find, by the lists that are looked through."""
    lists = InvertedLists(DIM, InvertedLists.lists_for(made.rows))
    wanted = np.zeros(made.rows, bool)
    wanted[InvertedLists.sample_rows(made.rows, lists.num_lists)] = True
    sample = [block[wanted[first : first + len(block)]] for first, block in made.blocks()]
    begun = time.perf_counter()
    lists.train(np.concatenate(sample))
    trained_s, added_s = time.perf_counter() - begun, 0.0
    for _, block in made.blocks():
        begun = time.perf_counter()
        lists.add(block)
        added_s += time.perf_counter() - begun
    k = found.rows_QK.shape[1]
    table = Table(
        *("lists looked through", "queries/s", "x exact", "recall, first", f"recall, {k}"),
        title=f"IVF: {lists.num_lists:,} lists, centres in {trained_s:.1f} s, filled in "
        f"{added_s:.1f} s",
    )
    for probed in (1, 4, 16, 64):
        begun = time.perf_counter()
        near = lists.search(made.probes, k, probed)
        seconds = time.perf_counter() - begun
        first = float((near.rows_QK[:, 0] == found.rows_QK[:, 0]).mean())
        table.add_row(
            f"{probed}",
            f"{len(made.probes) / seconds:,.0f}",
            f"{exact_s / seconds:.1f}",
            f"{first:.3f}",
            f"{recall(near, found):.3f}",
        )
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=20)
    options = parser.parse_args()
    begun = time.perf_counter()
    made = Made(options.rows, options.probes)
    load = os.getloadavg()[0]
    found, seconds, products = exact(made, options.k)
    table = Table(
        *("", "seconds", "GFLOP/s", "exact search's rate is", "by the processor's time"),
        title=f"{options.probes:,} probes, {options.rows:,} rows of {DIM}, k = {options.k}; "
        f"{torch.get_num_threads()} threads, load {load:.1f} before",
    )
    operations = 2 * options.probes * options.rows * DIM
    for name, taken in {"exact search": seconds, **products}.items():
        ratios = (
            f"{taken.clock / seconds.clock:.0%}",
            f"{taken.processor / seconds.processor:.0%}",
        )
        rate = f"{operations / taken.clock / 1e9:,.0f}"
        table.add_row(name, f"{taken.clock:.2f}", rate, *(ratios if name in products else ()))
    CONSOLE.print(table)
    own = float((found.rows_QK[:, 0] == made.rows_of).mean())
    CONSOLE.print(f"exact search finds the probe's own row first for {own:.1%}")
    inverted(made, found, seconds.clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    CONSOLE.print(f"peak memory {peak:.2f} GiB; {time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
