"""Reads at an offset of files that stay open between reads."""

import errno
import os
from functools import lru_cache
from pathlib import Path

from manyfaces.data.store.open_file import OpenFile

OPEN_FILES = 64

_opened = lru_cache(OPEN_FILES)(OpenFile)


def read_at(path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`, fewer at the end of the file; the file stays open for the
    next read. Raises `OSError` with the file's name."""
    try:
        return _opened(path).read(offset, size)
    except OSError as error:
        error.filename = path  # a read by descriptor does not tell it
        raise


def raise_if_disk_failed(error: Exception, path: Path | str) -> None:
    """Raise an `OSError` with the file's name where pyarrow's error is one of the disk. For content
    that is broken it raises an `OSError` too: without a number, or with that of a place which no
    file has."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
