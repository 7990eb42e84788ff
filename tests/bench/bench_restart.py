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
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from manyfaces.train.heartbeat import read_heartbeats
from manyfaces.train.record import EVENTS, read_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from marked import Marked, kill, wait_until
from small_run import IDENTITIES, IMAGES_OF_EACH, command_of, made_faces, write_recipe

TIMEOUT_S = 300
EVERY = 10
"""Steps between checkpoints."""


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
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
    command = command_of(launcher, recipe, workers)
    found, killed_at = [], 0.0
    marked = Marked()
    try:
        for number in range(kills + 1):
            # A launcher that starts no worker again itself is started again by the person.
            if number == 0 or launcher != "ray":
                marked.kill()
                process = marked.start(command)
            wait_until(partial(has_begun, run, number + 1), process, TIMEOUT_S)
            if number > 0:
                found.append(parts_since(killed_at, run, launcher))
            reached = events(run, "ready")[-1]["step"] + EVERY
            wait_until(partial(has_checkpoint, run, reached), process, TIMEOUT_S)
            killed_at = time.time()
            kill(read_heartbeats(run)[workers - 1].pid)
            if launcher != "ray":
                process.wait()
    finally:
        marked.kill()
    return found


def made_recipe(folder: Path) -> Path:
    """A recipe without an end, with its faces."""
    path = made_faces(folder / "faces", IDENTITIES * IMAGES_OF_EACH)
    checkpoint = {"every_steps": EVERY}
    return write_recipe(folder, data={"path": str(path)}, checkpoint=checkpoint)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / EVENTS) if row["kind"] == kind]


def has_begun(run: Path, sessions: int) -> bool:
    return len(events(run, "ready")) >= sessions


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
