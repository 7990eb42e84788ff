"""What a checkpoint of a head costs: how long the step that bears it stalls, how long the next steps
take while it is written, time to write and to read it, and memory; beside torch.save of the same
state.

    python tests/bench/bench_checkpoint.py FOLDER [--classes 1000000] [--dim 512] [--json]

Needs some eight times the state's bytes free in FOLDER, and three times in memory. One process on
the CPU with one thread; each kind of rows has a process of its own. The state is a Partial-FC
head's and nothing else; a step takes a batch of 64 and a tenth of the classes. Memory is the most
that was resident at any time (VmHWM), over what was resident before the first step.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import Config, Head, Rows
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer
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
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        figures = measure(arguments.folder, arguments.kind, arguments.classes, arguments.dim)
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
    table = Table(f"{arguments.classes:,} classes of {arguments.dim}", *KINDS)
    for name in results[next(iter(KINDS))]:
        table.add_row(name, *(f"{figures[name]:,.2f}" for figures in results.values()))
    Console().print(table)


def measure(folder: Path, kind: str, num_classes: int, dim: int) -> dict[str, float]:
    """The figures of one kind of rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    head, built_s = timed(
        lambda: PartialFC(
            Head(rows=KINDS[kind], sample_rate=0.1),
            num_classes,
            dim,
            seed=1,
            weight_decay=5e-4,
            device=torch.device("cpu"),
        )
    )
    state = RunState(Config(model=MobileFaceNet()), "", num_classes, seed=1)
    position = 0

    def step() -> float:
        nonlocal position
        embeddings_ND = torch.randn(BATCH, dim)
        labels_N = torch.randint(0, num_classes, (BATCH,))
        began = time.monotonic()
        head.step(embeddings_ND, labels_N, lr=0.1, position=position, batch_size=BATCH)
        position += BATCH
        return time.monotonic() - began

    def snapshot(number: int) -> Snapshot:
        parts = {"head": ShardedRows(head.tensors(), num_classes)}
        return Snapshot(state.at(step=number), {}, {}, parts)

    before = resident("VmRSS")
    step_s = statistics.median(step() for _ in range(STEPS))
    saver = Checkpointer(folder / "checkpoints", Checkpoint())
    reserve_s = timed(lambda: saver.reserve(snapshot(0)))[1]
    stalls, writes, beside = [], [], []
    for number in (1, 2):
        began = time.monotonic()
        saver.save(snapshot(number))
        stalls.append(time.monotonic() - began)
        beside += [step() for _ in range(3)]
        saver.wait()
        writes.append(time.monotonic() - began)
    peak = resident("VmHWM")
    found, compare_s = timed(lambda: find(saver.folder, None, saver.group))
    assert found is not None
    parts = snapshot(0).objective
    read_s = timed(lambda: load_parts(found.path, parts, saver.group))[1]
    shutil.rmtree(saver.folder)
    file = folder / "torch.pt"
    torch_write_s = timed(lambda: saved(file, head))[1]
    torch_read_s = timed(lambda: torch.load(file))[1]
    file.unlink()
    return {
        "state (GB)": snapshot(0).num_bytes / 1e9,
        "built (s)": built_s,
        "median step (s)": step_s,
        "memory taken before the first step (s)": reserve_s,
        "stall of the step that bears it (s)": max(stalls),
        "that step over the median one": (max(stalls) + step_s) / step_s,
        "steps beside the writing (s)": statistics.median(beside),
        "written, on disk (s)": max(writes),
        "resident before (GB)": before,
        "most resident (GB)": peak,
        "bytes compared on resume (s)": compare_s,
        "read into the head (s)": read_s,
        "torch.save, on disk (s)": torch_write_s,
        "torch.load (s)": torch_read_s,
    }


def saved(file: Path, head: PartialFC) -> None:
    """torch.save, flushed to disk."""
    with file.open("wb") as opened:
        torch.save(head.tensors(), opened)
    subprocess.run(["sync", str(file)], check=True)


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
