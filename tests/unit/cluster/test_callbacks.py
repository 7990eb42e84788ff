"""What is done in Ray's controller before it replaces workers, and while it looks for a place for
them."""

import inspect
import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train.v2._internal.execution import callback as hooks
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from manyfaces.cluster import callbacks
from manyfaces.cluster.callbacks import PlacementTimeout, SaveBeforeResize, watch_drains
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
        self.tell_error: OSError | None = None
        monkeypatch.setattr(callbacks, "current", lambda: self.asked)
        monkeypatch.setattr(callbacks.ray, "get", lambda done, timeout: done)
        monkeypatch.setattr(callbacks, "POLL_S", 0.01)
        for stop in self.stops:
            stop.tell = self._tell

    def _tell(self, reason: str, ends: bool) -> None:
        assert not ends
        self.told += reason
        if self.tell_error is not None:
            raise self.tell_error

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


def test_a_record_that_cannot_be_written_hinders_no_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = Workers(monkeypatch, polls=4)
    workers.tell_error = OSError("No space left on device")
    resize(workers, RUNNING, RESIZING)
    assert workers.polls == 0
    assert workers.told


def test_workers_that_do_not_answer_are_waited_for_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers, waits = Workers(monkeypatch, polls=4), list[float]()

    def get(done: Any, timeout: float) -> Any:
        waits.append(timeout)
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(callbacks.ray, "get", get)
    resize(workers, RUNNING, RESIZING)
    assert waits == [60]


def watch(
    monkeypatch: pytest.MonkeyPatch, notice: Callable[[], object], *, size: int = 2
) -> tuple[list[tuple[str, str]], list[float]]:
    """What the first of so many workers warns of where Ray's notices are these, and the pauses
    between its looks for them."""
    stop, warned, slept = Stop(), list[tuple[str, str]](), list[float]()
    stop.warn = lambda *words: warned.append(words)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: size)
    monkeypatch.setattr(callbacks, "current", lambda: stop)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_preemption_info", notice)
    monkeypatch.setattr(callbacks.time, "sleep", slept.append)
    watch_drains(True, 30, threading.Event())
    return warned, slept


def test_notices_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def notice() -> object:
        return SimpleNamespace(ranks=[0])

    ((kind, message),), _ = watch(monkeypatch, notice)
    assert kind == "drains_unwatched"
    assert message.endswith(
        "AttributeError: 'types.SimpleNamespace' object has no attribute 'preempted_ranks'"
    )


def test_workers_that_end_are_no_failure_and_many_look_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for size, pause_s in ((2, 1.0), (1024, 8.0)):
        looks = iter([None, None])

        def notice(looks: Any = looks) -> object:
            try:
                return next(looks)
            except StopIteration:
                raise ray.exceptions.RayActorError from None

        assert watch(monkeypatch, notice, size=size) == ([], [pause_s] * 2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (PlacementTimeout, hooks.ControllerCallback),
        (SaveBeforeResize, hooks.ControllerCallback),
        (SaveBeforeResize, hooks.WorkerGroupCallback),
        (callbacks.Failures, ray.train.UserCallback),
        (callbacks.Backend, callbacks.TorchConfig().backend_cls),
    ],
)
def test_ray_still_calls_the_hooks_by_these_names(ours: type, theirs: type) -> None:
    """A hook that Ray has renamed would never be called."""
    known = {name for base in ours.__mro__[1:] for name in vars(base)}
    own = {name for name in vars(ours) if not name.startswith("_")}
    assert own
    assert own <= known
    for name in own & vars(theirs).keys():
        assert list(inspect.signature(getattr(ours, name)).parameters) == list(
            inspect.signature(getattr(theirs, name)).parameters
        )


def test_what_is_called_of_ray_still_has_these_names() -> None:
    for name in ("execute", "execute_async", "execute_single_async", "__len__"):
        assert hasattr(WorkerGroup, name)
    notice = ray.train.PreemptionInfo
    assert "deadline_ms" in notice.__dataclass_fields__
    assert isinstance(notice.preempted_ranks, property)
    assert inspect.signature(ray.train.get_preemption_info).parameters == {}


def test_workers_that_have_failed_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(monkeypatch, polls=4)
    resize(workers, RUNNING, RESIZING, FAILED)
    assert workers.polls == 4


def test_the_wait_for_a_place_has_an_end_which_says_what_is_missing() -> None:
    timeout = PlacementTimeout(0.0, lambda: "2 workers are wanted, the cluster has 1 cores")
    timeout.after_controller_state_update(STARTING, RUNNING)
    with pytest.raises(RuntimeError) as told:
        timeout.after_controller_state_update(RUNNING, FAILED)
    assert str(told.value) == (
        "no place for them within 0 s (cluster.schedule_timeout_s=0): 2 workers are wanted, the "
        "cluster has 1 cores; start nodes or lower cluster.workers, and the same command goes on"
    )


def test_each_wait_for_a_place_is_counted_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    timeout = PlacementTimeout(100, str)
    for _ in range(5):
        timeout.after_controller_state_update(RUNNING, FAILED)
        now[0] += 90
        timeout.after_controller_state_update(FAILED, AGAIN)
        timeout.after_controller_state_update(AGAIN, RUNNING)
        now[0] += 90
    # A node that is drained for long is no wait: its workers train.
    timeout.after_controller_state_update(RUNNING, DRAINED)
    now[0] += 1000
    timeout.after_controller_state_update(DRAINED, DRAINED)
    timeout.after_controller_state_update(DRAINED, FAILED)
    now[0] += 101
    timeout.after_controller_state_update(FAILED, PLACED)
    with pytest.raises(RuntimeError):
        timeout.after_controller_state_update(PLACED, AGAIN)


def test_a_worker_that_ray_killed_for_memory_says_so_and_how_full_its_node_was() -> None:
    advice = "Refer to the documentation on how to address the out of memory issue: https://x."
    text = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
        f"127.0.0.1, ID: ab) was 22.10GB used / 23.00GB limit (0.96). {advice}"
    )
    assert callbacks._cause(ray.exceptions.OutOfMemoryError(text)) == (
        "died: Ray killed its process, as its node was out of memory: 22.10 of 23.00 GiB"
    )
