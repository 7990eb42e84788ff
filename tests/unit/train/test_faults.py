"""A plan of faults: what is read, what is refused, and that each is injected once, in its rank, at
its step, in its phase."""

import errno
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.train.faults import Fault, FaultPlan, parse
from manyfaces.train.record import read_rows
from manyfaces.train.watchdog import Watchdog

WALK = [
    ("start", 0),
    ("restore", 0),
    ("data", 0),
    ("step 1", 0),
    ("checkpoint", 1),
    ("checkpoint:rows", 1),
    ("checkpoint:after", 1),
    ("data", 1),
    ("step 2", 1),
    ("checkpoint", 2),
    ("checkpoint:rows", 2),
    ("replacement", 2),
    ("evaluation", 2),
    ("upload", 2),
]
"""The phases of two steps, as the watchdog and the checkpointer tell them, with the steps made."""


def plan(text: str, run: Path, rank: int = 0) -> FaultPlan:
    return FaultPlan(parse(text), rank, run, run / ".faults")


def met(text: str, run: Path, rank: int = 0) -> list[tuple[str, int]]:
    """Where on the walk the fault of this text, a `raise`, is injected."""
    faults, found = plan(text, run, rank), []
    for phase, step in WALK:
        try:
            faults.reach(phase, step)
        except RuntimeError:
            found.append((phase, step))
    return found


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("rank=0", ("start", 0)),
        ("rank=0,step=1", ("step 1", 0)),
        ("rank=0,step=2,phase=step", ("step 2", 1)),
        ("rank=0,step=1,phase=data", ("data", 1)),
        ("rank=0,phase=checkpoint", ("checkpoint", 1)),
        ("rank=0,step=2,phase=checkpoint", ("checkpoint", 2)),
        ("rank=0,phase=checkpoint:after", ("checkpoint:after", 1)),
        ("rank=0,step=2,phase=checkpoint:rows", ("checkpoint:rows", 2)),
        ("rank=0,phase=evaluation", ("evaluation", 2)),
        ("rank=0,phase=replacement", ("replacement", 2)),
        ("rank=0,phase=upload", ("upload", 2)),
    ],
)
def test_a_fault_is_injected_once_where_it_was_planned(
    tmp_path: Path, where: str, expected: tuple[str, int]
) -> None:
    assert met(f"raise@{where}", tmp_path) == [expected]
    # A worker that was started again goes the same way.
    assert met(f"raise@{where}", tmp_path) == []
    (event,) = read_rows(tmp_path / "events.jsonl")
    assert (event["kind"], event["fault"], event["phase"]) == (
        "fault",
        f"raise@{where}",
        expected[0],
    )


def test_other_ranks_other_steps_and_no_plan_have_no_faults(tmp_path: Path) -> None:
    assert met("raise@rank=1", tmp_path) == []
    plan("raise@rank=0,phase=data", tmp_path).reach("a phase of several words", 3)
    assert met("raise@rank=0,step=3", tmp_path) == []
    assert met("", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_named_twice_happens_twice(tmp_path: Path) -> None:
    text = "raise@rank=0,step=1,phase=step; raise@rank=0,step=1,phase=step"
    assert [met(text, tmp_path) for _ in range(3)] == [[("step 1", 0)], [("step 1", 0)], []]


def test_the_marker_is_on_disk_before_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []

    def look(self: Fault, folder: Path) -> None:
        there.append([path.name for path in (folder / ".faults").iterdir()])

    monkeypatch.setattr(Fault, "happen", look)
    plan("kill@rank=0", tmp_path).reach("start", 0)
    assert there == [["kill@rank=0"]]


def test_sleep_and_a_full_disk(tmp_path: Path) -> None:
    faults = plan("sleep@rank=0,seconds=0.2;enospc@rank=0,phase=checkpoint:rows", tmp_path)
    began = time.monotonic()
    faults.reach("start", 0)
    assert time.monotonic() - began >= 0.2
    with pytest.raises(OSError, match="No space left") as error:
        faults.reach("checkpoint:rows", 5)
    assert error.value.errno == errno.ENOSPC


def _reach(text: str, run: Path) -> None:
    plan(text, run).reach("start", 0)


@pytest.mark.parametrize("kind", ["kill", "term"])
def test_a_signal_ends_the_process(tmp_path: Path, kind: str) -> None:
    process = multiprocessing.get_context("forkserver").Process(
        target=_reach, args=(f"{kind}@rank=0", tmp_path)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -getattr(signal, f"SIG{kind.upper()}")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("kil@rank=1", "kind: Input should be 'kill'"),
        ("kill", "rank: Field required"),
        ("kill@rank=x", "rank: Input should be a valid integer"),
        ("kill@rank=-1", "rank: Input should be greater than or equal to 0"),
        ("kill@rank=1,phase=lunch", "phase: Input should be 'start'"),
        ("kill@rank=1,stp=7", "stp: Extra inputs are not permitted"),
        ("kill@rank=1,rank=2", "a word stands twice"),
        ("kill@rank=1,seconds=4", "seconds=S belongs to sleep"),
        ("sleep@rank=1", "seconds=S belongs to sleep"),
        ("enospc@rank=1,phase=step", "enospc needs one of the phases checkpoint:"),
    ],
)
def test_a_word_that_cannot_be_read_is_one_line(word: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        parse(f"sleep@rank=0,seconds=1;{word}")
    line = str(error.value)
    assert line.startswith(f"MANYFACES_FAULTS: {word!r}: {told}") or told in line
    assert "\n" not in line
    assert "'kill@rank=1,step=7;" in line


def test_the_watchdog_tells_the_plan_of_each_phase(tmp_path: Path) -> None:
    faults = plan("raise@rank=0,step=3,phase=step", tmp_path)
    watchdog = Watchdog(60, lambda message: None, 0, entered=faults.reach)
    try:
        watchdog.made(2)
        watchdog.phase("data")
        with pytest.raises(RuntimeError, match="raise@rank=0,step=3"):
            watchdog.phase("step 3")
    finally:
        watchdog.close()
