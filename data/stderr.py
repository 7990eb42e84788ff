"""What C libraries write to file descriptor 2: libjpeg tells of missing data nowhere else."""

import functools
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MISSING_DATA = "premature end of data"  # libjpeg's words for what it then paints gray


def with_stderr(work: Callable[[], T]) -> tuple[T, str]:
    """Do the work; returns its result and what was written to file descriptor 2 meanwhile, by
    whatever thread of this process."""
    file, kept = _kept_file(), os.dup(2)
    try:
        os.dup2(file, 2)
        result = work()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        said = os.pread(file, os.fstat(file).st_size, 0)
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
    return result, said.decode(errors="replace")


@functools.cache
def _kept_file() -> int:
    """A file in memory that is kept, since making one takes as long as decoding a small image."""
    return os.memfd_create("stderr")
