"""What a checkpoint of a head costs: how long the step that bears it stalls, what the steps until it
is written take beyond the usual, time to write and to read it, and memory; beside torch.save and
torch.distributed.checkpoint.async_save of the same state in the same process.

    python tests/bench/bench_checkpoint.py FOLDER [--classes 1000000] [--dim 512] [--rate 0.1]
        [--threads 1] [--json]

Needs some eight times the state's bytes free in FOLDER, and three times in memory. One process on
the CPU; each kind of rows has a process of its own. The state is a Partial-FC head's and nothing
else; a step takes a batch of 64 and a tenth of the classes. Ours is the slower of two
saves. Extra time is the stall and what all steps until the checkpoint is on disk take beyond the
median step before; of the processor, in the thread that trains: that does not depend on what else
the machine does. Memory is the most that was resident at any time (VmHWM) of ours.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.table import Table
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import Config, Head, Rows
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.objectives.objective import ShardedRows

T = TypeVar("T")
BATCH, STEPS = 64, 8
KINDS = {
    "float32 sgd": Rows(),
    "float16 rowwise": Rows(optimizer="rowwise", dtype="float16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0.1, help="share of the classes in a step")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        torch.set_num_threads(arguments.threads)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        head = Trained(KINDS[arguments.kind], arguments.classes, arguments.dim, arguments.rate)
        figures = measure(arguments.folder, head)
        print(json.dumps(figures))  # noqa: T201
        return
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--kind"]
    results = {
        kind: json.loads(subprocess.run([*command, kind], check=True, stdout=-1).stdout)
        for kind in KINDS
    }
    if arguments.json:
        print(json.dumps(results))  # noqa: T201
        return
    console = Console(width=160)
    for kind, found in results.items():
        table = Table(f"{arguments.classes:,} classes of {arguments.dim}, {kind}", *Cost._fields)
        ours = found["costs"]["manyfaces"]
        for name, each in found["costs"].items():
            table.add_row(name, *(f"{each[f]:,.4f} ({each[f] / ours[f]:,.1f} x)" for f in ours))
        console.print(table)
    table = Table("", *KINDS)
    for name in results[next(iter(KINDS))]["figures"]:
        table.add_row(name, *(f"{each['figures'][name]:,.2f}" for each in results.values()))
    console.print(table)


class Clock:
    """Seconds since it was made, on the wall and of the processor in this thread: those do not
    depend on what else the machine does."""

    def __init__(self) -> None:
        self._began, self._processor = time.monotonic(), time.thread_time()

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def processor_s(self) -> float:
        return time.thread_time() - self._processor


class Step(NamedTuple):
    wall_s: float
    processor_s: float


class Trained:
    """A head and the steps that train it."""

    def __init__(self, rows: Rows, num_classes: int, dim: int, rate: float) -> None:
        began = time.monotonic()
        self.head = PartialFC(
            Head(rows=rows, sample_rate=rate),
            num_classes,
            dim,
            seed=1,
            weight_decay=5e-4,
            device=torch.device("cpu"),
        )
        self.built_s = time.monotonic() - began
        self.state = RunState(Config(model=MobileFaceNet()), "", num_classes, seed=1)
        self.num_classes, self.dim, self.position = num_classes, dim, 0

    def step(self) -> "Step":
        """Take a step; what it took."""
        embeddings_ND = torch.randn(BATCH, self.dim)
        labels_N = torch.randint(0, self.num_classes, (BATCH,))
        clock = Clock()
        self.head.step(embeddings_ND, labels_N, lr=0.1, position=self.position, batch_size=BATCH)
        self.position += BATCH
        return Step(clock.wall_s, clock.processor_s)

    def snapshot(self, number: int) -> Snapshot:
        rows = ShardedRows(self.head.tensors(), self.num_classes, self.head.watch)
        return Snapshot(self.state.at(step=number), {}, {}, {"head": rows})


class Cost(NamedTuple):
    """What one save in the background costs the training beside it."""

    stall_s: float
    stall_processor_s: float
    extra_s: float
    """The stall, and what all steps until it is on disk take beyond the usual."""
    extra_processor_s: float
    step_beside_s: float
    """The median step of those; of torch.save the usual one."""
    written_s: float


def cost(head: Trained, save: Callable[[], object], is_written: Callable[[], bool]) -> Cost:
    """The cost of `save`, steps going on until `is_written`."""
    usual = [head.step() for _ in range(STEPS)]
    usual_s = statistics.median(step.wall_s for step in usual)
    usual_processor_s = statistics.median(step.processor_s for step in usual)
    clock = Clock()
    save()
    stall_s, stall_processor_s = clock.wall_s, clock.processor_s
    steps = [head.step()]
    while not is_written():
        steps.append(head.step())
    written_s = clock.wall_s
    taken_s = sum(step.wall_s for step in steps)
    taken_processor_s = sum(step.processor_s for step in steps)
    return Cost(
        stall_s,
        stall_processor_s,
        stall_s + taken_s - len(steps) * usual_s,
        stall_processor_s + taken_processor_s - len(steps) * usual_processor_s,
        statistics.median(step.wall_s for step in steps),
        written_s,
    )


def measure(folder: Path, head: Trained) -> dict[str, Any]:
    """The figures of one kind of rows, and what a save costs by name of who makes it."""
    figures = {
        "state (GB)": head.snapshot(0).num_bytes / 1e9,
        "built (s)": head.built_s,
        "median step (s)": statistics.median(head.step().wall_s for _ in range(STEPS)),
        "resident before (GB)": resident("VmRSS"),
    }
    ours, ours_figures = our_cost(folder / "checkpoints", head)
    fresh, kept = dcp_costs(folder / "dcp", head)
    file = folder / "torch.pt"
    torch_save = saved(file, head.head, figures["median step (s)"])
    torch_read_s = timed(lambda: torch.load(file))[1]
    file.unlink()
    costs = {
        "manyfaces": ours,
        "torch.save": torch_save,
        "async_save": fresh,
        "async_save, memory kept": kept,
    }
    return {
        "figures": figures | ours_figures | {"torch.load (s)": torch_read_s},
        "costs": {name: each._asdict() for name, each in costs.items()},
    }


def our_cost(folder: Path, head: Trained) -> tuple[Cost, dict[str, float]]:
    """The cost of a checkpoint of ours, the slower of two, and further figures."""
    done = Event()
    hooks = Hooks(committed=lambda step, path: done.set())
    saver = Checkpointer(folder, Checkpoint(), hooks)
    reserve_s = timed(lambda: saver.reserve(head.snapshot(0)))[1]
    costs = []
    for number in (1, 2):
        done.clear()
        costs.append(cost(head, partial(saver_saves, saver, head, number), done.is_set))
        saver.wait()
    peak = resident("VmHWM")
    found, compare_s = timed(lambda: find(folder, None, saver.group))
    assert found is not None
    parts = head.snapshot(0).objective
    read_s = timed(lambda: load_parts(found.path, parts, saver.group))[1]
    shutil.rmtree(folder)
    return Cost(*map(max, *costs)), {
        "memory taken before the first step (s)": reserve_s,
        "most resident (GB)": peak,
        "bytes compared on resume (s)": compare_s,
        "read into the head (s)": read_s,
    }


def saver_saves(saver: Checkpointer, head: Trained, number: int) -> None:
    """What the loop does in a step that bears a checkpoint."""
    saver.save(head.snapshot(number))


def dcp_costs(folder: Path, head: Trained) -> tuple[Cost, Cost]:
    """The cost of torch's async_save as it comes, and with a stager whose memory was touched by a
    save before."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    fresh, _, kept = (dcp_cost(folder, head, each) for each in (None, stager, stager))
    stager.close()
    return fresh, kept


def dcp_cost(folder: Path, head: Trained, stager: DefaultStager | None) -> Cost:
    """The cost of one async_save; what it wrote is removed."""
    futures: list[Future[object]] = []

    def save() -> None:
        tensors = head.head.tensors()
        futures.append(dcp.async_save(tensors, checkpoint_id=folder, async_stager=stager))

    found = cost(head, save, lambda: futures[0].done())
    futures[0].result()
    shutil.rmtree(folder)
    return found


def saved(file: Path, head: PartialFC, step_s: float) -> Cost:
    """The cost of torch.save, for which all training waits; not flushed but for `written_s`."""
    clock = Clock()
    with file.open("wb") as opened:
        torch.save(head.tensors(), opened)
    stall_s, processor_s = clock.wall_s, clock.processor_s
    subprocess.run(["sync", str(file)], check=True)
    return Cost(stall_s, processor_s, stall_s, processor_s, step_s, clock.wall_s)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and its seconds."""
    began = time.monotonic()
    return work(), time.monotonic() - began


def resident(field: str) -> float:
    """GB of this field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e6 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
