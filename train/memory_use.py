"""How much memory this process holds, and how much its node has left."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs import this_machine
from manyfaces.configs.amounts import size

NEARLY_FULL = 0.05
"""A process that is killed while its node has less than this share of its memory left was most
likely killed for memory."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes, as a rank's heartbeat tells them; 0 where the system does not say."""

    used: int = 0
    """What the process holds."""
    free: int = 0
    """What its node, or the container that it runs in, has left."""
    total: int = 0
    """What that has in all."""

    @property
    def is_nearly_full(self) -> bool:
        """Whether the node had next to nothing left."""
        return self.total > 0 and self.free < NEARLY_FULL * self.total

    def __str__(self) -> str:
        """A clause on the process and its node, for people."""
        return (
            f"its process held {size(self.used)}, and its node had {size(self.free)} of "
            f"{size(self.total)} left"
        )


def memory_use() -> MemoryUse:
    """What stands now; nothing where the system does not tell, as only Linux does."""
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        free, total = (1024 * int(meminfo[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
        group = this_machine.control_group()
    except (OSError, ValueError, KeyError):
        return MemoryUse()
    if group is not None:  # what others outside of it use does not count
        total = group.limit_bytes
        with contextlib.suppress(OSError, ValueError, KeyError):
            free = min(free, max(total - group.used_bytes(), 0))
    return MemoryUse(resident * os.sysconf("SC_PAGE_SIZE"), free, total)
