"""Reads at an offset of files that stay open between reads."""

from functools import lru_cache

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
