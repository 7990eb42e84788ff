"""Who this process is among the workers, and how they agree that something went well."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from manyfaces.configs.schema import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int

    @classmethod
    def current(cls) -> "World":
        """Of a process whose process group is up, whoever made it."""
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def device(self) -> torch.device:
        """One GPU a worker where there are GPUs; Ray shows each worker its own as the first."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


def agree(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """This rank's `work()`, once every rank's went well. Collective: where one fails all raise
    `UserError`, so that none waits in a later collective for one that is gone."""
    result, fault = None, None
    try:
        result = work()
    except Exception as error:  # whatever it is, the others must not wait for it
        fault = str(error) or repr(error)
    faults: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(faults, fault, group=group)
    for rank, told in enumerate(faults):
        if told is not None:
            raise UserError(told if len(set(faults)) == 1 else f"rank {rank}: {told}")
    return result  # type: ignore[return-value]
