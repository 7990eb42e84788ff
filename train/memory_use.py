"""How much memory this process holds, and how much its node has left."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.this_machine import memory_bytes

_IN_CONTAINER = Path("/sys/fs/cgroup/memory.current")
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
        """For people."""
        return (
            f"its process held {_gb(self.used)}, and its node had {_gb(self.free)} of "
            f"{_gb(self.total)} left"
        )


def memory_use() -> MemoryUse:
    """What stands now; nothing where the system does not tell, as only Linux does."""
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        free, whole = (1024 * int(meminfo[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return MemoryUse()
    total, _ = memory_bytes()
    if total < whole:  # a container: what others outside of it use does not count
        with contextlib.suppress(OSError, ValueError):
            free = min(free, max(total - int(_IN_CONTAINER.read_text()), 0))
    return MemoryUse(resident * os.sysconf("SC_PAGE_SIZE"), free, total)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
