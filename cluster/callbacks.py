"""What is done when Ray starts, loses, drains or replaces workers. With `launch`, the files that
know ray.train; this one imports it, and is imported where it is there already.

The callbacks run in Ray's controller, a process of its own, and the other functions in workers.
"""

import contextlib
import pkgutil
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig
from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_DEADLINE_S
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)

from manyfaces.cluster.group import GROUP_TIMEOUT_S
from manyfaces.cluster.launch import NO_PLACE
from manyfaces.cluster.rank_logs import print_to
from manyfaces.cluster.signals import take_in_worker
from manyfaces.cluster.stop import current

POLL_S = 0.2
DRAIN_POLL_S = 1.0
DRAIN_POLLS_S = 128
"""Each look for a drained node is a call of every worker to one actor of Ray's, which is given no
more calls a second than this: more workers look less often."""
WITHOUT_PLACE = (InitializingState, RestartingState, ReschedulingState)
"""States in which there are no workers, and no place for them was found yet."""
_NODE_FULL = re.compile(r"Memory on the node .* was ([\d.]+)GB used / ([\d.]+)GB limit")
"""What Ray says, among much advice, of a process that it has killed for its node's memory; its GB
are of 1024^3 bytes."""
PAUSE_MARGIN_S = 60.0
"""Workers that are about to be replaced wait so much longer for it than it should take."""


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Sets up torch's process group, after each worker has learnt to take signals."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(take_in_worker)
        super().on_start(worker_group, backend_config)


class Group(TorchConfig):  # type: ignore[misc]
    """The process group of torch."""

    def __init__(self) -> None:
        super().__init__(timeout_s=GROUP_TIMEOUT_S)

    @property
    def backend_cls(self) -> Any:
        return Backend


class Failures(ray.train.UserCallback):  # type: ignore[misc]
    """Has each failure of workers told by the function `failed` (`MODULE:FUNCTION`), before they
    are started again."""

    def __init__(self, failed: str, payload: dict[str, Any]) -> None:
        self.failed, self.payload, self.count = failed, payload, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self.count += 1
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        # A record that cannot be written must not keep Ray from starting the workers again.
        with contextlib.suppress(Exception):
            pkgutil.resolve_name(self.failed)(self.payload, causes, self.count)


def _cause(error: Exception) -> str:
    """Why a worker failed, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayError) and (full := _NODE_FULL.search(str(error))):
        used, limit = full.groups()
        return f"died: Ray killed its process, as its node was out of memory: {used} of {limit} GiB"
    if isinstance(error, ray.exceptions.RayActorError):
        if "node" in str(error) and "died" in str(error):
            return "died: its node was lost"
        return "died: its process was killed, or had no memory left"
    return f"failed: {lines[-1] if lines else repr(error)}"


class PlacementTimeout(ControllerCallback):  # type: ignore[misc]
    """Ends the run where workers cannot be placed for `wait_s` seconds, at its start or after a
    failure: Ray would try without end. `resources` says what they need and what there is."""

    def __init__(self, wait_s: float, resources: Callable[[], str]) -> None:
        self.wait_s, self.resources = wait_s, resources
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, (*WITHOUT_PLACE, SchedulingState)):
            self._since = None
            return
        if self._since is None:
            self._since = time.monotonic()
        waited_s = time.monotonic() - self._since
        if waited_s > self.wait_s and isinstance(current_state, WITHOUT_PLACE):
            raise RuntimeError(
                f"{NO_PLACE} {waited_s:.0f} s (cluster.schedule_timeout_s="
                f"{self.wait_s:g}): {self.resources()}; start nodes or lower cluster.workers, and "
                "the same command goes on"
            )
        if type(previous_state) is type(current_state):
            time.sleep(POLL_S)  # Ray would ask for resources without a pause


class SaveBeforeResize(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Lets workers that train save within `grace_s` seconds, before Ray replaces them by more or
    fewer and so throws away their steps since the last checkpoint."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self._workers: Any = None
        self._is_resizing = False

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._workers = worker_group

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self._workers = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, ResizingState):
            self._is_resizing = True
        elif isinstance(current_state, RunningState | RestartingState):
            self._is_resizing = False

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        if self._workers is None or not self._is_resizing:  # these have failed, or there are none
            return
        # Where they cannot save, the checkpoint before stays.
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            deadline = time.monotonic() + self.grace_s
            now, then = len(self._workers), resize_decision.num_workers
            reason = f"the cluster has a place for {then} workers instead of {now}"
            asked = self._workers.execute_async(save_and_pause, self.grace_s + PAUSE_MARGIN_S)
            # The record may be slow: nobody waits for it.
            self._workers.execute_single_async(0, tell, reason)
            ray.get(asked, timeout=self.grace_s)
            while (left_s := deadline - time.monotonic()) > 0:
                if all(ray.get(self._workers.execute_async(has_paused), timeout=left_s)):
                    return
                time.sleep(POLL_S)


def keep_output(logs: Path) -> None:
    """Have what this worker prints from now on in the log of its rank, in the folder `logs`."""
    context = ray.train.get_context()
    with contextlib.suppress(OSError):  # the run itself tells that it cannot write there
        print_to(logs, context.get_world_rank(), context.get_world_size())


def save_and_pause(seconds: float) -> None:
    """Ask this worker for a checkpoint, and to make no step after it for so long."""
    current().save(pause_s=seconds)


def has_paused() -> bool:
    """Whether this worker waits behind a checkpoint."""
    return current().has_paused


def tell(reason: str) -> None:
    """Have it recorded why this run saves. A record that cannot be written hinders no saving."""
    with contextlib.suppress(OSError):
        current().tell(reason, False)


def watch_drains(is_elastic: bool, grace_s: float, ended: threading.Event) -> None:
    """Turn Ray's notices that it drains nodes of this run into requests: to save and stop, or,
    where the run goes on with fewer workers, to save. `grace_s` seconds before the node goes such a
    run saves again and waits, as the steps until then would be done again. All ranks call it, each
    in a thread; `ended` says that the worker's work is over."""
    try:
        _watch_drains(is_elastic, grace_s)
    except (ray.exceptions.RayError, TimeoutError):
        return  # The workers have ended, or are about to.
    except Exception as error:
        while (warn := current().warn) is None and not ended.wait(POLL_S):
            pass  # The worker has no record yet.
        if warn is not None and not ended.is_set():
            with contextlib.suppress(OSError):
                warn(
                    "drains_unwatched",
                    "Ray's notices that it drains nodes cannot be read, and the run goes on "
                    f"without them: {type(error).__name__}: {error}",
                )


def _watch_drains(is_elastic: bool, grace_s: float) -> None:
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    poll_s = DRAIN_POLL_S * max(1.0, context.get_world_size() / DRAIN_POLLS_S)
    seen, pauses_at, gone_at = None, float("inf"), 0.0
    while True:
        notice = ray.train.get_preemption_info()
        if notice is not None and notice != seen:
            seen = notice
            reason, gone_at = _drain(notice)
            pauses_at = gone_at - grace_s
            if not is_elastic:
                current().ask(reason)
                return
            current().save()
            if is_first:
                tell(reason)
        if time.time() >= pauses_at:
            current().save(pause_s=max(gone_at - time.time(), 0) + PAUSE_MARGIN_S)
            pauses_at = float("inf")
        time.sleep(poll_s)


def _drain(notice: Any) -> tuple[str, float]:
    """What a person is told of the notice, and when Ray replaces the workers, in seconds since
    1970."""
    ranks = ", ".join(str(rank) for rank in notice.preempted_ranks)
    reason, now = f"Ray's notice that it drains the node of rank {ranks}", time.time()
    if notice.deadline_ms is None:
        return reason, now + DEFAULT_PREEMPTION_DEADLINE_S
    gone_at = notice.deadline_ms / 1000
    return f"{reason} in {max(gone_at - now, 0):.0f} s", gone_at
