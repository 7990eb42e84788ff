"""How far the reading and writing of checkpoints has come, on all ranks together: what tells slow
from stuck."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from manyfaces.cluster.world import on_all_ranks

T = TypeVar("T")
POLL_S = 0.5
"""Seconds between two looks at a thread that is waited for."""
ROUND_S = 0.5
"""Seconds between two rounds in which the ranks tell how far they are."""


class Moved:
    """A count of bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count these too; from any thread."""
        with self._lock:
            self.num_bytes += num_bytes


MOVED = Moved()
"""All bytes of checkpoints that this process has read, hashed or written. It is one for the
process, as the system's own counters are, since nearly all that touches a checkpoint's files adds
to it."""


def nothing() -> None:
    """What is called where nobody watches."""


def watched(
    work: Callable[[], T],
    group: dist.ProcessGroup,
    beat: Callable[[], None],
    moved: Moved = MOVED,
) -> T:
    """As `on_all_ranks`, for work that moves many bytes of a checkpoint: `beat` is called, from
    another thread, each time that more of them were `moved` on any rank.

    So a rank whose own part is done does not take the others for stuck. Where no rank gets on any
    more, or one does not answer, `beat` is not called. Collective; `work` itself calls no
    collective of this group.
    """
    done = threading.Event()
    args = done, group, beat, moved
    rounds = threading.Thread(target=_rounds, args=args, name="rounds", daemon=True)
    rounds.start()

    def worked() -> T:
        try:
            return work()
        finally:
            done.set()
            rounds.join()

    return on_all_ranks(worked, group)


def joined(thread: threading.Thread, got_on: threading.Event, beat: Callable[[], None]) -> None:
    """Wait until the thread has ended. `beat` is called each time that `got_on` was set, which is
    cleared then."""
    while thread.is_alive():
        thread.join(POLL_S)
        if got_on.is_set():
            got_on.clear()
            beat()


def _rounds(
    done: threading.Event, group: dist.ProcessGroup, beat: Callable[[], None], moved: Moved
) -> None:
    told, world_size = -1, dist.get_world_size(group)
    while True:
        is_done = done.wait(ROUND_S)
        facts = torch.tensor([int(is_done), moved.num_bytes])
        try:
            dist.all_reduce(facts, group=group)
        except RuntimeError:
            return  # some rank is gone: `on_all_ranks` meets the same and raises it
        num_done, num_bytes = facts.tolist()
        if num_bytes != told:
            told = num_bytes
            beat()
        if num_done == world_size:
            return
