"""Who this process is among the workers, and how all of them learn that something went well."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from manyfaces.cluster.device import worker_device
from manyfaces.cluster.stop import StoppedError
from manyfaces.configs.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among the workers."""

    rank: int
    size: int
    device: torch.device
    """What it computes on."""

    @classmethod
    def current(cls) -> "World":
        """The place of this process, whose process group is up, whoever made it."""
        return cls(dist.get_rank(), dist.get_world_size(), worker_device())


def spare_cores(threads_per_worker: int, on_node: int | None = None) -> int:
    """The cores of this node that fall to each of the workers `on_node`, or where that is not given
    to this worker, whoever launched it, less the threads that it computes with; at least 1."""
    if on_node is None:
        on_node = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(len(os.sched_getaffinity(0)) // on_node - threads_per_worker, 1)


def on_all_ranks(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `work()` returned on this rank, once it went well on every rank of the group.

    Collective. Where it fails on one rank all raise `UserError` with that rank's message, so that
    none waits in a later collective for one that is gone; where nothing failed but some were asked
    to stop, all raise `StoppedError`.
    """
    result, fault, stopped = None, None, None
    try:
        result = work()
    except StoppedError as error:
        stopped = str(error)
    except Exception as error:  # whatever it is, the others must not wait for it
        fault = str(error) or repr(error)
    ends: list[tuple[str | None, str | None]] = [(None, None)] * dist.get_world_size(group)
    dist.all_gather_object(ends, (fault, stopped), group=group)
    faults = [each for each, _ in ends]
    for rank, told in enumerate(faults):
        if told is not None:
            everywhere_alike = len(set(faults)) == 1
            raise UserError(told if everywhere_alike else f"rank {rank}: {told}")
    for _, reason in ends:
        if reason is not None:
            raise StoppedError(reason)
    return result  # type: ignore[return-value]
