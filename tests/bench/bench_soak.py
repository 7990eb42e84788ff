"""A run under a random fault every 30 seconds, beside a run of the same recipe that nothing befell.

    python tests/bench/bench_soak.py [FOLDER] [--minutes 30] [--every 30] [--seed 1] [--workers 2]

First the quiet run, then the same command under faults: kill -9 and SIGSTOP of a rank, SIGTERM of
the command, kill -9 while a checkpoint is written, a flipped byte in the newest checkpoint, a full
disk (root: a small tmpfs; else an unwritable folder), MLflow's server gone, a slow store.
Whenever the command ends before the run is finished it is typed again, by Ray and by torchrun in
turn (with `--workers 1` in the process itself too). Faults end after `--minutes`; the run then goes
on to its last step. The seed is that of the choices; at which moment of a step a fault strikes is
the machine's.

Fails where the end is not the quiet run's: each step measured once, the last checkpoint's bytes,
each step once in MLflow. Ctrl-C leaves no process and no mount behind. FOLDER keeps the recipe, the
quiet run (`--quiet-only` makes no other) and what the commands said (soak.log); none is kept of a
temporary one.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from manyfaces.train.folder import RunFolder
from manyfaces.train.record import EVENTS, METRICS, read_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoint_tensors import differing
from marked import Marked
from mlflow_server import MlflowServer
from slow_store import SlowStore
from small_run import BATCH, IDENTITIES, IMAGES_OF_EACH, command_of, made_faces, write_recipe
from soak_faults import STOPPING, Fault, Session, faults, own_disk
from trained_samples import read_samples

STEPS_A_MINUTE = 200
"""Steps for each minute of faults, most of which goes to restarts."""
EVERY, SHARDS = 20, 12
IMAGES = IDENTITIES * IMAGES_OF_EACH
PAUSE_S = 1.0
"""Until the command is typed again."""
VAIN = 15
"""Times in a row that it may end without a new step before something is wrong with it."""
AT_ONCE = 0.25
"""Share of the faults that strike at their time whatever the run is at; the others wait until it
trains."""
console = Console(highlight=False)


@dataclass
class Log:
    """What befell the run."""

    faults: Counter[str] = field(default_factory=Counter)
    stopped_at: list[float] = field(default_factory=list)
    """Times, in seconds since 1970, of the faults after which workers start anew."""
    ends: Counter[int] = field(default_factory=Counter)
    """Exit codes of the command."""
    lost: list[int] = field(default_factory=list)
    """Steps that a start did again."""
    left_behind: int = 0
    """Processes that outlived a command which ended by itself."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=30, help="seconds between faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of the run; default: 200 a minute")
    parser.add_argument("--step-timeout", type=float, default=20, help="until a rank is hung")
    parser.add_argument("--quiet-only", action="store_true")
    parser.add_argument("--only", nargs="*", help="faults of these names")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        soak(folder.absolute(), arguments, stack)


def soak(folder: Path, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    """The quiet run and the other one, and what came of it."""
    steps = arguments.steps or max(int(STEPS_A_MINUTE * arguments.minutes), 2 * EVERY)
    made_faces(folder / "served" / "faces", IMAGES // SHARDS)
    store = SlowStore(folder / "served")
    stack.callback(store.close)
    marked, mlflow = Marked(), MlflowServer(folder)
    stack.callback(mlflow.kill)
    stack.callback(marked.kill)
    recipe = recipe_of(folder, store, arguments, steps)
    output = stack.enter_context((folder / "soak.log").open("a"))
    quiet, run = folder / "runs" / "quiet", folder / "runs" / "soak"
    began = time.monotonic()
    say(f"seed {arguments.seed}: the quiet run of {steps:,} steps")
    words = [*command_of("ray", recipe, arguments.workers), "run.name=quiet"]
    if code := marked.start(words, output).wait():
        sys.exit(f"the quiet run ended with {code}; see {folder / 'soak.log'}")
    say(f"which took {(time.monotonic() - began) / 60:.1f} min")
    if arguments.quiet_only:
        return
    shutil.rmtree(run, ignore_errors=True)
    (folder / "mlflow.db").unlink(missing_ok=True)
    has_disk = stack.enter_context(own_disk(run / "checkpoints"))
    stack.callback(marked.kill)  # before the disk goes
    chosen = {
        name: fault
        for name, fault in faults(has_disk).items()
        if not arguments.only or name in arguments.only
    }
    mlflow.start()
    mlflow.wait()
    session = Session(run, marked, store, mlflow, subprocess.Popen(["true"], text=True), "")
    began = time.monotonic()
    log = endure(session, recipe, chosen, arguments, output)
    wall_s = time.monotonic() - began
    session.mend(everything=True)
    summarise(log, session, quiet, steps, wall_s)
    same_end(run, quiet, steps)
    mlflow.wait()
    mlflow_has_all(session, steps, output)
    say(
        f"end: steps 1 to {steps:,} once each in the record and in MLflow, and the last checkpoint "
        "bit-identical to the quiet run's"
    )


def endure(
    session: Session,
    recipe: Path,
    chosen: dict[str, Fault],
    arguments: argparse.Namespace,
    output: IO[Any],
) -> Log:
    """Type the command until the run is finished, while faults befall it."""
    rng, log = random.Random(arguments.seed), Log()
    launchers = ["ray", "torchrun"] + ["process"] * (arguments.workers == 1)
    deck: list[str] = []
    started, sessions, waits, vain, furthest = 0, 0, True, 0, 0
    ends_at = time.monotonic() + 60 * arguments.minutes
    due_at = time.monotonic() + arguments.every
    session.process.wait()
    while True:
        session.mend()
        if session.process.poll() is not None:
            if sessions:
                time.sleep(PAUSE_S)
                log.ends[session.process.returncode] += 1
                if left := session.marked.commands():
                    code = session.process.returncode
                    say(f"{session.launcher} ended with {code} and left: {', '.join(left)}")
                log.left_behind += session.marked.kill()
                if session.process.returncode == 0:
                    return log
                vain, furthest = (vain + 1 if session.step <= furthest else 0), session.step
                expect(vain < VAIN, f"{vain} commands made no step; see soak.log")
            session.launcher = launchers[sessions % len(launchers)]
            words = [*command_of(session.launcher, recipe, arguments.workers), "run.name=soak"]
            words.append(f"tracking.uri={session.mlflow.uri}")
            session.process, sessions = session.marked.start(words, output), sessions + 1
        started = follow(session, log, started)
        now = time.monotonic()
        if now > due_at and now < ends_at and (not waits or is_training(session.run)):
            deck = deck or rng.sample(sorted(chosen), len(chosen))
            name = deck.pop()
            struck_at, told = time.time(), chosen[name](session, rng)
            if told:
                log.faults[name] += 1
                log.stopped_at += [struck_at] * (name in STOPPING)
                say(f"step {session.step:,}, {session.launcher}: {told}")
                due_at, waits = now + arguments.every, rng.random() >= AT_ONCE
        time.sleep(0.1)


def follow(session: Session, log: Log, started: int) -> int:
    """Count what starts have lost; returns the number of starts that were counted."""
    starts = [row for row in read_rows(session.run / EVENTS) if row["kind"] == "start"]
    for row in starts[started:]:
        if started or row is not starts[0]:
            log.lost.append(max(session.step - row["step"], 0))
        session.step = row["step"]
    session.step = max(session.step, last_step(session.run))
    return len(starts)


def last_step(run: Path) -> int:
    """The last step that was measured; its row is near the end of the file."""
    try:
        with (run / METRICS).open("rb") as file:
            file.seek(max(file.seek(0, 2) - 4000, 0))
            lines = file.read().split(b"\n")[1:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError):
        return 0


def is_training(run: Path) -> bool:
    """Whether the last start has come to its first step, and nothing has ended it."""
    kinds = [row["kind"] for row in read_rows(run / EVENTS)]
    ends = ("start", "ready", "worker_failed", "hung", "stopping", "interrupted", "stopped")
    told = [kind for kind in kinds if kind in ends]
    return bool(told) and told[-1] == "ready"


def summarise(log: Log, session: Session, quiet: Path, steps: int, wall_s: float) -> None:
    """The lines for people."""
    events = read_rows(session.run / EVENTS)
    ready = [row["time"] for row in events if row["kind"] == "ready"]
    recovered = [
        min((time_s - at for time_s in ready if time_s > at), default=0.0) for at in log.stopped_at
    ]
    restarts = sum(row["kind"] == "worker_failed" for row in events)
    ends = ", ".join(f"{code} {times} x" for code, times in sorted(log.ends.items()))
    kinds = ", ".join(f"{name} {times}" for name, times in sorted(log.faults.items()))
    productive_s, quiet_s = (
        60 * max(row.get("minutes", 0.0) for row in read_rows(run / METRICS))
        for run in (session.run, quiet)
    )
    say(f"{steps:,} steps in {wall_s / 60:.1f} min under {log.faults.total()} faults: {kinds}")
    say(
        f"restarts: {restarts} by Ray, {log.ends.total() - 1} by typing the command again; exit "
        f"codes {ends}; processes left behind: {log.left_behind}"
    )
    say(
        f"lost: {sum(log.lost)} steps were done again ({sum(log.lost) / steps:.1%}), at most "
        f"{max(log.lost, default=0)} at once; a checkpoint every {EVERY}"
    )
    mean = sum(recovered) / max(len(recovered), 1)
    say(
        f"recovered after {mean:.1f} s on average, {max(recovered, default=0.0):.1f} s at most; "
        f"ETTR {productive_s / wall_s:.1%}, goodput {quiet_s / wall_s:.1%} of the quiet run's"
    )


def same_end(run: Path, quiet: Path, steps: int) -> None:
    """Raise `SystemExit` where the run's end is not the quiet one's."""
    rows = [[row for row in read_rows(r / METRICS) if "train/loss" in row] for r in (run, quiet)]
    for measured in rows:
        expect([row["step"] for row in measured] == list(range(1, steps + 1)), "steps are missing")
        positions = [round(row["train/epoch"] * IMAGES) for row in measured]
        expect(positions == list(range(BATCH, (steps + 1) * BATCH, BATCH)), "samples are missing")
    losses = [[row["train/loss"] for row in measured] for measured in rows]
    expect(losses[0] == losses[1], "the losses are not the quiet run's")
    expect(samples(run) == samples(quiet), "other samples than the quiet run's")
    ours, theirs = (r / "checkpoints" / f"step-{steps:08d}" for r in (run, quiet))
    names = differing(ours, theirs)
    expect(not names, f"of the last checkpoint {', '.join(names)} are not the quiet run's")


def samples(run: Path) -> dict[int, list[dict[str, Any]]]:
    return read_samples(RunFolder(run).samples)


def mlflow_has_all(session: Session, steps: int, output: IO[Any]) -> None:
    """Raise `SystemExit` where MLflow lacks a step, or has one twice, after `sync-mlflow`."""
    sync = ["-m", "manyfaces.train", "sync-mlflow", str(session.run)]
    expect(session.marked.start(sync, output).wait() == 0, "sync-mlflow failed")
    from mlflow import MlflowClient

    known = json.loads((session.run / "mlflow.json").read_text())
    client = MlflowClient(known["uri"])
    sent = [point.step for point in client.get_metric_history(known["run_id"], "train/loss")]
    expect(sorted(sent) == list(range(1, steps + 1)), "MLflow has not each step once")
    expect(client.get_run(known["run_id"]).info.status == "FINISHED", "MLflow knows of no end")


def recipe_of(folder: Path, store: SlowStore, arguments: argparse.Namespace, steps: int) -> Path:
    """The run's recipe: shards come from the store, and its cache holds a third of them."""
    shards = list((folder / "served" / "faces").glob("*.tar"))
    data = {
        "path": f"{store.url}/faces",
        "cache_dir": str(folder / "cache"),
        "cache_gb": len(shards) // 3 * max(shard.stat().st_size for shard in shards) / 1e9,
        "order": {"kind": "shuffle", "window_shards": 1},
        "store_patience_s": arguments.step_timeout / 2,
    }
    return write_recipe(
        folder,
        data=data,
        # Half a batch less than all steps: rounded up, it is as many of them.
        train={"epochs": (steps - 0.5) * BATCH / IMAGES},
        checkpoint={"every_steps": EVERY, "keep": 5},
        tracking={"log_samples": True},
        cluster={"step_timeout_s": arguments.step_timeout},
    )


def expect(holds: bool, told: str) -> None:
    if not holds:
        sys.exit(f"FAILED: {told}")


def say(text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {text}")


if __name__ == "__main__":
    main()
