"""A column of short texts that is not one Python object a row, for sources of tens of millions of
images."""

import os
from array import array


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
