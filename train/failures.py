"""Workers that failed, as the run's record tells it: who, where, why, and what is done again."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence, Set
from typing import Any

from manyfaces.cluster.rank_logs import last_lines, log_path
from manyfaces.configs.amounts import size
from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.layout import newest_step
from manyfaces.train.folder import RunFolder
from manyfaces.train.heartbeat import Heartbeat, read_heartbeats
from manyfaces.train.lease import Launch
from manyfaces.train.record import METRICS, Record, last_event, read_rows

KILLED = "died: its process was killed, or had no memory left"
_SETTLE_S, _POLL_S = 1.0, 0.05
"""Longest wait for the other ranks to have left their errors, and for a killed process to be
gone."""
_OF_ANOTHER = ("by peer", "remote process", "socket")
"""Words in the errors of ranks that have lost another."""


def workers_failed(payload: Mapping[str, Any], causes: Mapping[int, str], count: int) -> None:
    """Record the `count`-th failure; `causes` is what the launcher knows so far, by rank. Called by
    the launcher."""
    config = load_stored(payload["config"], "the launcher's configuration")
    folder = RunFolder.of(config)
    _wait_for_ranks(folder)
    launch = Launch(folder.path, payload.get("lease"))
    if launch.lost():  # the record is another launch's
        return
    started = last_event(folder.path, "start") or {}
    world_size = started.get("world_size", 0)
    # A session before this one may have had more ranks.
    found = read_heartbeats(folder.path).items()
    beats = {rank: beat for rank, beat in found if rank < world_size or not world_size}
    rank, cause = first_to_fail(causes, beats)
    where = beats[rank].where if rank in beats else f"rank {rank}"
    measured = [row["step"] for row in read_rows(folder.path / METRICS)]
    step = max([*measured, *(beat.step for beat in beats.values())], default=0)
    good = newest_step(folder.checkpoints) or 0
    going_on = next_line(config, count, step, good, saved=good > payload.get("saved", good))
    reason = f"{cause}{memory_words(cause, beats.get(rank), _planned_bytes(folder))}"
    Record(folder.path).event(
        "worker_failed",
        f"{where} {reason}; step {step}; {going_on}",
        rank=rank,
        step=step,
        log=str(log_path(folder.logs, rank)),
        last_lines=last_lines(folder.logs, rank),
    )


def _wait_for_ranks(folder: RunFolder) -> None:
    """Until each rank has left its error or is gone, as far as that can be seen from here."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        beats = read_heartbeats(folder.path).values()
        if beats and all(beat.fault or _is_gone(beat) for beat in beats):
            return
        time.sleep(_POLL_S)


def first_to_fail(causes: Mapping[int, str], beats: Mapping[int, Heartbeat]) -> tuple[int, str]:
    """The rank that failed first, and its cause: when one worker is gone the others fail too, in
    their next collective, and may be known to the launcher before it."""
    # These have ended themselves, as they had waited too long for another.
    waited = {rank for rank, beat in beats.items() if beat.overdue}
    died = sorted(rank for rank, cause in causes.items() if cause.startswith("died"))
    killed = [rank for rank in died if rank not in waited]
    if killed:
        return killed[0], causes[killed[0]]
    faults = {rank: beat for rank, beat in beats.items() if beat.fault}
    quiet = sorted(beats.keys() - faults.keys() - waited)
    gone = [rank for rank in quiet if _is_gone(beats[rank])]
    if gone:
        return gone[0], KILLED
    if waited:
        return _hung(beats, waited, quiet)
    if not faults:
        rank = min(causes)
        return rank, causes[rank]
    # An error of a rank's own comes first whatever the nodes' clocks say, which may disagree.
    own = [beat for beat in faults.values() if not _is_of_another(beat.fault)]
    if quiet and not own:
        return quiet[0], "is gone: it was lost by the others"
    first = min(own or faults.values(), key=lambda beat: beat.failed_at)
    return first.rank, f"failed: {first.fault}"


def _hung(
    beats: Mapping[int, Heartbeat], waited: Set[int], quiet: Sequence[int]
) -> tuple[int, str]:
    """The rank that the others waited for, by heartbeats: one that is not overdue itself, or else
    the one that has come least far."""
    rank = quiet[0] if quiet else min(sorted(waited), key=lambda rank: beats[rank].phases)
    return rank, (
        f"has hung: it was last heard of in {beats[rank].phase!r}, and the others waited for "
        "longer than cluster.step_timeout_s"
    )


def _planned_bytes(folder: RunFolder) -> int:
    """Memory of a worker by the run's plan; 0 where that cannot be read."""
    try:
        return int(json.loads(folder.plan_figures.read_bytes())["memory_bytes"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def memory_words(cause: str, beat: Heartbeat | None, planned_bytes: int) -> str:
    """What is said of memory besides the cause, where that is or may be the reason: what the rank
    held, what its node had left, and what the plan had said that a worker takes; "" otherwise."""
    is_told = "out of memory" in cause.lower()
    held = ""
    if cause == KILLED and beat is not None and beat.memory.is_nearly_full:
        held = f"{beat.memory}; "
    if not is_told and not held:
        return ""
    planned = "the run's plan is not known"
    if planned_bytes:
        planned = f"the run's plan is {size(planned_bytes)} a worker, see plan.txt"
    return f" ({held}{planned})"


def _is_of_another(fault: str) -> bool:
    return any(word in fault.lower() for word in _OF_ANOTHER)


def next_line(config: Config, count: int, step: int, good: int, *, saved: bool) -> str:
    """How the run goes on after `step` steps, of which a checkpoint holds `good`; `saved`: it was
    written since the first of these `count` failures could happen."""
    limit = config.cluster.max_failures
    of = f" {count} of {limit}" if limit >= 0 else f" {count}"
    if 0 <= limit < count:
        if limit == 0 or not saved:
            return f"no restart is left of cluster.max_failures={limit}"
        of = ", from which on they are counted anew,"
    return f"restart{of} goes on from step {good}: {max(step - good, 0)} steps done again"


def _is_gone(beat: Heartbeat) -> bool:
    """Whether the process has ended; it may only be seen on its own node."""
    if not beat.pid or beat.node != socket.gethostname():
        return False
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another's
        return False
    return False
