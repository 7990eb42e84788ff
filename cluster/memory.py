"""How workers on CPUs keep memory between steps, without importing torch. glibc reads these
settings when a process starts, so they have to be set before: whatever launches the workers."""

import os
import sys
from collections.abc import Mapping

# glibc gives large blocks back to the kernel at once, which zeroes them again at the next step.
# Measured with tests/bench/bench_job.py on the recipe of small faces, two cores: 31 images/s as
# glibc does it, 63 so.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}


def restart_keeping_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Start this process anew, with the same command and process id, where it has not begun with
    `KEEP_MEMORY`; what the person has set stays. Call it before anything is done."""
    missing = {name: value for name, value in KEEP_MEMORY.items() if name not in environment}
    if missing and sys.platform == "linux":
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**environment, **missing})
