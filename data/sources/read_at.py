"""Reads at an offset of files that stay open between reads."""

import os
from functools import lru_cache

OPEN_FILES = 64


class _OpenFile:
    """A file that stays open until the cache forgets it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # it is not there where `os.open` has raised
            os.close(self.descriptor)


@lru_cache(OPEN_FILES)
def _opened(path: str) -> _OpenFile:
    return _OpenFile(path)


def read_at(path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset`, fewer at the end of the file; the file stays open for the
    next read. Raises `OSError`."""
    return os.pread(_opened(path).descriptor, size, offset)
