"""What keeps tens of millions of images from being as many Python objects: texts in one block of
bytes, and reads at an offset."""

import os
from array import array
from functools import lru_cache

OPEN_FILES = 64


class Texts:
    """A column of short texts (file names), at their UTF-8 length + 8 bytes each. Names that are
    not UTF-8 survive, as in `os.fsencode`."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += os.fsencode(text)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(bytes(self._bytes[self._ends[row] : self._ends[row + 1]]))


class _Open:
    """A file that stays open until the cache forgets it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(OPEN_FILES)
def _opened(path: str) -> _Open:
    return _Open(path)


def read_at(path: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, fewer at the end of the file; the file stays open for the next
    read. Raises `OSError`."""
    return os.pread(_opened(path).descriptor, size, offset)
