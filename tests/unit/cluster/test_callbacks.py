"""What is done in Ray's controller before it replaces workers, and while it looks for a place for
them."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)

from manyfaces.cluster import callbacks
from manyfaces.cluster.callbacks import Patience, SaveBeforeResize
from manyfaces.cluster.stop import Stop

ERROR: Any = RuntimeError("a worker died")
RUNNING, STARTING = RunningState(), InitializingState()
FAILED, AGAIN = (
    state(training_failed_error=ERROR) for state in (RestartingState, ReschedulingState)
)
DRAINED = PreemptingState(preemption_info=SimpleNamespace(), detected_at_s=0.0)
PLACED = SchedulingState(scaling_decision=SimpleNamespace(num_workers=2))
RESIZING = ResizingState(scaling_decision=SimpleNamespace(num_workers=3))


class Workers:
    """Two workers in this process, which save when they have been asked `polls` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
        self.stops, self.polls, self.told = [Stop(), Stop()], polls, ""
        self.asked: Stop | None = None
        monkeypatch.setattr(callbacks, "current", lambda: self.asked)
        monkeypatch.setattr(callbacks.ray, "get", lambda done, timeout: done)
        monkeypatch.setattr(callbacks, "POLL_S", 0.01)
        for stop in self.stops:
            stop.tell = self._tell

    def _tell(self, reason: str, ends: bool) -> None:
        assert not ends
        self.told += reason

    def __len__(self) -> int:
        return len(self.stops)

    def execute_async(self, call: Callable[..., Any], *arguments: Any) -> list[Any]:
        self.polls -= 1
        for stop in self.stops:
            stop.has_paused = self.polls <= 0
        return [self.execute_single_async(rank, call, *arguments) for rank in range(len(self))]

    def execute_single_async(self, rank: int, call: Callable[..., Any], *arguments: Any) -> Any:
        self.asked = self.stops[rank]
        return call(*arguments)


def resize(workers: Workers, *states: Any, grace_s: float = 60) -> None:
    callback = SaveBeforeResize(grace_s)
    callback.after_worker_group_start(workers)
    for before, after in pairwise(states):
        callback.after_controller_state_update(before, after)
    callback.before_controller_execute_resize_decision(SimpleNamespace(num_workers=3))


def test_workers_that_train_save_and_pause_before_they_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers(monkeypatch, polls=4)
    resize(workers, RUNNING, RESIZING)
    assert workers.polls == 0
    assert all(stop.wants_checkpoint and stop.pause_s > 60 for stop in workers.stops)
    assert workers.told == "the cluster has a place for 3 workers instead of 2"


def test_workers_that_do_not_save_are_waited_for_only_as_long_as_the_time_of_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers(monkeypatch, polls=10**9)
    resize(workers, RUNNING, RESIZING, grace_s=0.2)
    assert all(stop.wants_checkpoint for stop in workers.stops)


def test_workers_that_have_failed_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch, polls=4)
    resize(workers, RUNNING, RESIZING, FAILED)
    assert workers.polls == 4


def test_the_wait_for_a_place_has_an_end_which_says_what_is_missing() -> None:
    patience = Patience(0.0, lambda: "2 workers are wanted, the cluster has 1 cores")
    patience.after_controller_state_update(STARTING, RUNNING)
    with pytest.raises(RuntimeError) as told:
        patience.after_controller_state_update(RUNNING, FAILED)
    assert str(told.value) == (
        "no place for them within 0 s (cluster.schedule_timeout_s=0): 2 workers are wanted, the "
        "cluster has 1 cores; start nodes or lower cluster.workers, and the same command goes on"
    )


def test_each_wait_for_a_place_is_counted_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    patience = Patience(100, str)
    for _ in range(5):
        patience.after_controller_state_update(RUNNING, FAILED)
        now[0] += 90
        patience.after_controller_state_update(FAILED, AGAIN)
        patience.after_controller_state_update(AGAIN, RUNNING)
        now[0] += 90
    # A node that is drained for long is no wait: its workers train.
    patience.after_controller_state_update(RUNNING, DRAINED)
    now[0] += 1000
    patience.after_controller_state_update(DRAINED, DRAINED)
    patience.after_controller_state_update(DRAINED, FAILED)
    now[0] += 101
    patience.after_controller_state_update(FAILED, PLACED)
    with pytest.raises(RuntimeError):
        patience.after_controller_state_update(PLACED, AGAIN)
