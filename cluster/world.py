"""Who this process is among the workers, and how all of them learn that something went well."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from manyfaces.configs.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among the workers."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def current(cls) -> "World":
        """The place of this process, whose process group is up, whoever made it."""
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def device(self) -> torch.device:
        """One GPU a worker where there are GPUs; Ray shows each worker its own as the first."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


def on_all_ranks(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `work()` returned on this rank, once it went well on every rank of the group.

    Collective. Where it fails on one rank all raise `UserError` with that rank's message, so that
    none waits in a later collective for one that is gone.
    """
    result, fault = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others must not wait for it
        fault = str(error) or repr(error)
    faults: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(faults, fault, group=group)
    for rank, told in enumerate(faults):
        if told is not None:
            everywhere_alike = len(set(faults)) == 1
            raise UserError(told if everywhere_alike else f"rank {rank}: {told}")
    return result  # type: ignore[return-value]
