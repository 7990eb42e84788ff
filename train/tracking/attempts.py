"""The attempts of a run: what lies between one start of its workers and the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_ENDS: Mapping[str, Status] = {
    "finished": "FINISHED",
    "stopped": "FAILED",
    "worker_failed": "FAILED",
    "hung": "FAILED",
    "left_out": "FAILED",
    "interrupted": "KILLED",
}
"""The status of an attempt, by the event that ended it."""
UNTOLD = "nothing was recorded of its end: its processes were killed, or the machine was lost"


@dataclass(frozen=True)
class Attempt:
    """One start of the workers, and what became of it."""

    number: int
    """From 1, in the run."""
    started: float
    """Seconds since 1970; no two attempts of a run began together."""
    start: Mapping[str, Any]
    """The event that its start was recorded with."""
    status: Status = "RUNNING"
    ended: float | None = None
    reason: str = ""
    """How it ended, for people."""


def attempts(events: Sequence[Mapping[str, Any]], live_from: int) -> list[Attempt]:
    """The attempts that these events tell of, in their order. One that says nothing of its end
    runs where its start is among the events from number `live_from` on, and else was killed."""
    found: list[Attempt] = []
    last_s = 0.0
    began_at = -1
    for number, event in enumerate(events):
        kind = event["kind"]
        if kind == "start":
            _close(found, last_s)
            found.append(Attempt(len(found) + 1, event["time"], event))
            began_at = number
        elif found and kind in _ENDS and _takes(found[-1], kind):
            found[-1] = replace(
                found[-1], status=_ENDS[kind], ended=event["time"], reason=event["message"]
            )
        last_s = event["time"]
    if began_at < live_from:
        _close(found, last_s)
    return found


def _takes(attempt: Attempt, kind: str) -> bool:
    """Whether this end is the attempt's: the first that is told, unless the launcher then says more
    of a failure, or the attempt went on all the same."""
    says_more = kind in ("worker_failed", "interrupted", "finished")
    return attempt.status == "RUNNING" or (attempt.status == "FAILED" and says_more)


def _close(found: list[Attempt], ended: float) -> None:
    """Have the last attempt ended, if nothing was recorded of it."""
    if found and found[-1].status == "RUNNING":
        found[-1] = replace(found[-1], status="KILLED", ended=ended, reason=UNTOLD)
