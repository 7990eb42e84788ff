"""What the workers of a run take in memory beside what its plan says.

    python tests/bench/bench_memory.py CONFIG [path.to.key=value ...] [--steps 8] [--json]

Trains for some steps, with a checkpoint every third one, in real worker processes, and looks at the
anonymous and shared memory of each every 20 ms. For workers on CPUs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from worker_peaks import Peaks, peaks_of

from manyfaces.configs.amounts import size
from manyfaces.configs.load import load
from manyfaces.configs.plan import plan, world_size
from manyfaces.configs.plan_lines import lines
from manyfaces.configs.worker_memory import BESIDE_WORKERS
from manyfaces.data.dataset.size import dataset_size

TRAIN = ["-m", "manyfaces.train", "train"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    config = load(arguments.config, arguments.overrides)
    images, identities, _ = dataset_size(config.data)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *arguments.overrides,
            f"train.epochs={arguments.steps * config.train.batch_size / images:.6f}",
            "checkpoint.every_steps=3",
            "run.name=run",
            f"run.dir={folder}",
        ]
        found = peaks_of([*TRAIN, arguments.config, *words], Path(folder, "run"))
    if arguments.json:
        print(json.dumps({"plan": found.plan, "ranks": found.ranks, "beside": found.beside}))  # noqa: T201
        return
    planned = plan(config, images, identities, world_size(config))
    show([(label, text) for label, text in lines(planned) if label.startswith(("memory", "  "))])
    compare(found)


def show(parts: list[tuple[str, str]]) -> None:
    """The parts of the plan."""
    table = Table("planned", "a worker")
    for label, text in parts:
        table.add_row(label, text)
    Console().print(table)


def compare(found: Peaks) -> None:
    """The peaks beside the plan."""
    table = Table("process", "planned", "at its peak", "planned / measured")
    for rank, taken in sorted(found.ranks.items()):
        planned = found.plan["memory_bytes"]
        table.add_row(f"rank {rank}", size(planned), size(taken), f"{planned / taken:.2f}")
    if len(found.ranks) > 1 or found.beside > 100 << 20:
        ratio = f"{BESIDE_WORKERS / found.beside:.2f}"
        table.add_row("all others", size(BESIDE_WORKERS), size(found.beside), ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
