"""Images a second of the same recipe under each launcher, in one table.

    python tests/bench/bench_launchers.py configs/demo.yaml [path.to.key=value ...] [--steps 60]

Each run is the command that a person types, in a folder of its own; the rate is the median of those
that the run records. Two workers by Ray and by torchrun, and one worker by Ray and in the process
itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

PYTHON = [sys.executable, "-m"]
TRAIN = ["manyfaces.train", "train"]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node=2", "-m", *TRAIN]
LAUNCHERS: dict[str, tuple[list[str], list[str]]] = {
    "Ray, 2 workers": (TRAIN, ["cluster.workers=2"]),
    "torchrun, 2 workers": (TORCHRUN, []),
    "Ray, 1 worker": (TRAIN, ["cluster.workers=1"]),
    "this process": (TRAIN, ["cluster.launcher=process"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=7200, help="of the dataset")
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    arguments = parser.parse_args()
    epochs = arguments.steps * arguments.batch / arguments.images
    rates = {
        name: measure(command, [*arguments.overrides, *words], arguments, epochs)
        for name, (command, words) in LAUNCHERS.items()
    }
    table = Table("launcher", "images/s", "beside Ray with as many workers")
    for name, rate in rates.items():
        of = rates["Ray, 2 workers" if "2" in name else "Ray, 1 worker"]
        table.add_row(name, f"{rate:,.0f}", f"{rate / of:.2f} x")
    Console().print(table)


def measure(
    command: list[str], words: list[str], arguments: argparse.Namespace, epochs: float
) -> float:
    """Images a second of one run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run.dir={folder}",
            "run.name=bench",
            f"train.epochs={epochs}",
            f"train.batch_size={arguments.batch}",
            "tracking.log_every_steps=5",
            "checkpoint.every_steps=1000000",
            "evaluation.pairs=[]",
        ]
        whole = [*PYTHON, *command, arguments.config, *settings, *words]
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "bench" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return float(statistics.median(row["images_per_s"] for row in rows if "images_per_s" in row))


if __name__ == "__main__":
    main()
