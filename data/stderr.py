"""What C libraries write to file descriptor 2: libjpeg tells of missing data nowhere else."""

import functools
import os
import tempfile
from collections.abc import Callable
from typing import BinaryIO, TypeVar

T = TypeVar("T")

MISSING_DATA = "premature end of data"  # libjpeg's words for what it then paints gray


def with_stderr(work: Callable[[], T]) -> tuple[T, str]:
    """Do the work; returns its result and what was written to file descriptor 2 meanwhile, by
    whatever thread of this process."""
    file, kept = _file(), os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        result = work()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        said = file.read(length)
        file.seek(0)
        file.truncate()
    return result, said.decode(errors="replace")


@functools.cache
def _file() -> BinaryIO:
    """An unnamed file that is kept, since making one takes as long as decoding a small image."""
    return tempfile.TemporaryFile(buffering=0)
