"""Runs on a Ray cluster in which something is lost, and what has to be true of them once they have
ended."""

import contextlib
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
from checkpoint_tensors import differing
from commands import recipe, rows
from launcher import run_ranks

from manyfaces.configs.load import load
from manyfaces.train.checkpoint.state import read_state

EPOCHS, STEPS, BATCH, IMAGES = 4, 30, 16, 120
WAIT_S = 600
EVERY = 5
"""Steps between two checkpoints."""
HELD_AFTER = 12
HOLD = f"sleep@rank=1,step={HELD_AFTER + 1},seconds=900"
"""A fault that keeps a run from its end until something has befallen it."""


wait_until = partial(commands.wait_until, timeout_s=WAIT_S)


def measured(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]


def last_step(run: Path) -> int:
    return int(max((row["step"] for row in measured(run)), default=0))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows(run / "events.jsonl") if row["kind"] == kind]


def starts(run: Path) -> list[dict[str, Any]]:
    return events(run, "start")


class Watched:
    """The furthest step that a run has measured, and when: a resume takes such rows back."""

    def __init__(self, run: Path) -> None:
        self.run, self.furthest = run, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            with contextlib.suppress(ValueError):  # a line that is being written
                self.furthest = max(self.furthest, last_step(self.run))


def check_record(run: Path, end: int) -> None:
    """Each step was measured once, and its samples follow those of the step before: each sample of
    an epoch was seen once."""
    assert [row["step"] for row in measured(run)] == list(range(1, end + 1))
    for row in measured(run):
        assert row["train/epoch"] == pytest.approx(row["step"] * BATCH / IMAGES)
    for checkpoint in (run / "checkpoints").glob("step-????????"):
        known = read_state(checkpoint)
        assert known["position"] == known["step"] * BATCH


def check_as_undisturbed(run: Path, twin: Path) -> None:
    """The run has ended bit for bit where the undisturbed one has."""
    check_record(run, STEPS)
    name = f"checkpoints/step-{STEPS:08d}"
    assert not differing(run / name, twin / name)
    losses = [[row["train/loss"] for row in measured(each)] for each in (run, twin)]
    assert losses[0] == losses[1]


def report(row: str, run: Path, fault_at: float, lost: int, *lines: str) -> None:
    """Print what the row of the fault matrix has shown."""
    begun = events(run, "start")[-1]["time"]
    on = next(row["time"] for row in measured(run) if row["time"] > begun)
    told = "; ".join(lines)
    print(f"ROW {row} | {told} | lost {lost} steps | {on - fault_at:.1f} s")  # noqa: T201


def config_of(folder: Path, dataset_path: Path, **sections: Any) -> Path:
    sections = {
        "train": {"epochs": EPOCHS},
        "checkpoint": {"every_steps": EVERY, "keep": 20},
    } | sections
    return recipe(folder, dataset_path, **sections)


def run_undisturbed(config: str) -> None:
    """The worker function itself."""
    from manyfaces.train.session import work

    warnings.simplefilter("default")  # DeepSpeed and what it imports warn of torch and themselves
    work({"name": "run", "config": load(config, []).model_dump(mode="json")})


def run_twin(folder: Path, dataset_path: Path) -> Path:
    """A run of two workers, without Ray, that nothing has disturbed."""
    run_ranks(2, run_undisturbed, str(config_of(folder, dataset_path)), timeout_s=WAIT_S)
    check_record(folder / "runs" / "run", STEPS)
    return folder / "runs" / "run"


def is_held(run: Path) -> bool:
    """Whether the run waits in `HOLD`, and its checkpoint before that is committed."""
    saved = [row["step"] for row in events(run, "checkpoint")]
    return last_step(run) >= HELD_AFTER and max(saved, default=0) >= HELD_AFTER - HELD_AFTER % EVERY
