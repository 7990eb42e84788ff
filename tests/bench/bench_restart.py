"""Seconds from the death of a worker to the first new step, by part.

    python tests/bench/bench_restart.py [FOLDER] [--launcher ray] [--workers 2] [--kills 3] [--json]

Makes faces in FOLDER (default: a temporary one), starts the command as a person types it, kills
the last rank as a machine without memory would (kill -9) and waits for the next new step. Under Ray
the workers are restarted by themselves; with `--launcher process` or `torchrun` the same command is
typed again, and all that it does before it trains is in the figures. The parts of the start are
those that the run records (`ready` in events.jsonl); the others lie between its events. Medians of
all kills; a run that was never killed is not measured: its parts are in its own record.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from manyfaces.train.record import EVENTS, read_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from commands import kill_tree, wait_until

TRAIN = ["-m", "manyfaces.train", "train"]
TORCHRUN = ["-m", "torch.distributed.run", "--master-port=0", "--rdzv-backend=c10d"]
TORCHRUN += ["--rdzv-endpoint=localhost:0"]
IDENTITIES, IMAGES = 200, 12
EVERY = 10  # steps between checkpoints
RECIPE: dict[str, Any] = {
    "data": {"image_px": 56, "augment": ["flip"]},
    "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": 64},
    "head": {"margin": {"kind": "cosface", "m": 0.2}, "scale": 32, "sample_rate": 0.5},
    "train": {"batch_size": 16, "epochs": 1000, "optimizer": {"kind": "sgd", "lr": 0.02}},
    "checkpoint": {"every_steps": EVERY},
    "tracking": {"log_every_steps": 1},
    "cluster": {"max_failures": -1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--launcher", choices=("ray", "process", "torchrun"), default="ray")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = 1 if arguments.launcher == "process" else arguments.workers
        found = measure(folder, arguments.launcher, workers, arguments.kills)
    parts = {part: statistics.median(each.get(part, 0.0) for each in found) for part in found[-1]}
    if arguments.json:
        print(json.dumps(parts))  # noqa: T201
        return
    load = os.getloadavg()[0]
    table = Table(f"{workers} workers by {arguments.launcher}, load {load:.1f}", "seconds")
    for part, seconds in parts.items():
        table.add_row(part, f"{seconds:.2f}")
    Console().print(table)


def measure(folder: Path, launcher: str, workers: int, kills: int) -> list[dict[str, float]]:
    """The seconds of each part, once for each kill."""
    recipe, run = made_recipe(folder), folder / "runs" / "run"
    shutil.rmtree(run, ignore_errors=True)
    options = [str(recipe), f"cluster.workers={workers}"]
    command = [*TRAIN, *options]
    if launcher == "torchrun":
        command = [*TORCHRUN, f"--nproc-per-node={workers}", *command]
    elif launcher == "process":
        command = [*command, "cluster.launcher=process"]
    found, killed_at = [], 0.0
    with contextlib.ExitStack() as sessions:
        for number in range(kills + 1):
            # A launcher that starts no worker again itself is started again by the person.
            if number == 0 or launcher != "ray":
                sessions.close()
                process = sessions.enter_context(started(command))
            wait_until(lambda n=number: len(events(run, "ready")) > n, process)
            if number > 0:
                found.append(parts_since(killed_at, run, launcher))
            reached = events(run, "ready")[-1]["step"] + EVERY
            wait_until(lambda to=reached: has_checkpoint(run, to), process)
            beat = json.loads((run / ".ranks" / f"{workers - 1}.json").read_text())
            killed_at = time.time()
            os.kill(beat["pid"], signal.SIGKILL)
            if launcher != "ray":
                process.wait()
    return found


def made_recipe(folder: Path) -> Path:
    """A recipe with a dataset of made faces, which is left where it is if it stands already."""
    folder.mkdir(parents=True, exist_ok=True)
    faces = folder / "faces"
    if not (faces / "manyfaces.json").exists():
        made = ["-m", "manyfaces.train", "data", "synth", str(faces)]
        sizes = ["--identities", str(IDENTITIES), "--images", str(IMAGES), "--seed", "1"]
        subprocess.run([sys.executable, *made, *sizes], check=True, capture_output=True)
    tree = {**RECIPE, "run": {"name": "run", "dir": str(folder / "runs")}}
    tree["data"] = {**RECIPE["data"], "path": str(faces)}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # which is YAML too
    return path


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command in the background; its whole tree is gone afterwards."""
    whole = [sys.executable, *command]
    process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, start_new_session=True, text=True)
    try:
        yield process
    finally:
        kill_tree(process)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / EVENTS) if row["kind"] == kind]


def has_checkpoint(run: Path, step: int) -> bool:
    return any(row["step"] >= step for row in events(run, "checkpoint"))


def parts_since(killed_at: float, run: Path, launcher: str) -> dict[str, float]:
    """Where the time went from the death of the worker to the step that came next."""
    ready = events(run, "ready")[-1]
    parts: dict[str, float] = ready["seconds"]
    born_at = ready["time"] - sum(parts.values())
    if launcher == "ray":
        told_at = events(run, "worker_failed")[-1]["time"]
        before = {
            "until its death was told": told_at - killed_at,
            "until the new process began": born_at - told_at,
        }
    else:
        before = {"until the new process began": born_at - killed_at}
    return {**before, **parts, "all": ready["time"] - killed_at}


if __name__ == "__main__":
    main()
