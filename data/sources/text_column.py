"""A column of short texts that is not one Python object a row, for sources of tens of millions of
images."""

import hashlib
import os
from array import array

import numpy as np
from numpy.typing import NDArray


class TextColumn:
    """A column of short texts (file names), at their UTF-8 length + 8 bytes each. Names that are
    not UTF-8 survive, as in `os.fsencode`."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        """Add a row."""
        self._bytes += os.fsencode(text)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(bytes(self._bytes[self._ends[row] : self._ends[row + 1]]))

    def repeated(self, group_N: NDArray[np.int32] | None = None) -> tuple[int, int] | None:
        """Find a text that stands twice (within one group of rows, where groups are given); returns
        both rows, None where there is none."""
        digests = bytearray()
        for row in range(len(self)):
            text = self._bytes[self._ends[row] : self._ends[row + 1]]
            digests += hashlib.blake2b(text, digest_size=8).digest()
        word_N = np.frombuffer(bytes(digests), np.uint64)
        if group_N is not None:
            word_N = word_N ^ (group_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        order = np.argsort(word_N, kind="stable")
        same = np.flatnonzero(word_N[order[1:]] == word_N[order[:-1]])
        for at in same.tolist():
            first, second = int(order[at]), int(order[at + 1])
            alike = group_N is None or group_N[first] == group_N[second]
            if alike and self[first] == self[second]:
                return first, second
        return None
