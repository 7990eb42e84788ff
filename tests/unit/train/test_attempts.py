"""What the events of a run tell of each start of its workers."""

import pytest

from manyfaces.train.tracking.attempts import UNTOLD, attempts


def events(*kinds: str) -> list[dict[str, object]]:
    return [{"kind": kind, "time": float(at), "message": kind} for at, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["start"], [("RUNNING", None, "")]),
        (["start", "checkpoint", "finished"], [("FINISHED", 2.0, "finished")]),
        (["start", "stopped"], [("FAILED", 1.0, "stopped")]),
        (["start", "stopping", "interrupted"], [("KILLED", 2.0, "interrupted")]),
        (
            ["start", "checkpoint", "start"],
            [("KILLED", 1.0, UNTOLD), ("RUNNING", None, "")],
        ),
        (
            ["start", "hung", "worker_failed", "start"],
            [("FAILED", 2.0, "worker_failed"), ("RUNNING", None, "")],
        ),
        (["start", "hung", "finished"], [("FINISHED", 2.0, "finished")]),
        (["start", "finished", "worker_failed"], [("FINISHED", 1.0, "finished")]),
        (
            ["start", "left_out", "start", "finished"],
            [("FAILED", 1.0, "left_out"), ("FINISHED", 3.0, "finished")],
        ),
        (["worker_failed"], []),
    ],
)
def test_each_attempt_has_its_own_end(
    kinds: list[str], told: list[tuple[str, float | None, str]]
) -> None:
    found = attempts(events(*kinds), live_from=0)
    assert [(each.status, each.ended, each.reason) for each in found] == told
    assert [each.number for each in found] == list(range(1, len(told) + 1))


def test_what_says_nothing_of_its_end_runs_only_in_this_session() -> None:
    known = events("start", "checkpoint")
    assert attempts(known, live_from=2)[0].status == "KILLED"
    assert attempts(known, live_from=0)[0].status == "RUNNING"
