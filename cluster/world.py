"""Who this process is among the workers."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


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
