"""Rows of a file of the record that have come since it was read last."""

from pathlib import Path
from typing import Any

from manyfaces.train.record import parse

MOST_BYTES = 8 << 20
"""Bytes that are read at once, but for the rest of a line."""


class Tail:
    """Reads what was appended. A file that was written anew, as metrics are by a resume, is read
    from its beginning: whoever takes its rows has to know those that it had before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._taken = 0, 0  # bytes of that file that were taken
        self._next = (0, 0)

    def rows(self) -> list[dict[str, Any]]:
        """The rows behind what was taken, of a long file the first `MOST_BYTES` of them; a last
        line that is not whole yet comes another time."""
        try:
            found = self.path.stat()
            same = self._inode == found.st_ino and self._taken <= found.st_size
            begin = self._taken if same else 0
            if found.st_size == begin:
                return []
            with self.path.open("rb") as file:
                file.seek(begin)
                whole = (file.read(MOST_BYTES) + file.readline()).rpartition(b"\n")[0]
        except FileNotFoundError:
            return []
        self._next = found.st_ino, begin + (len(whole) + 1 if whole else 0)
        return parse(whole, self.path.name)

    def take(self) -> bool:
        """The rows that were read last are taken: they do not come again. Returns whether anything
        was read, so that more may follow."""
        moved = (self._inode, self._taken) != self._next
        self._inode, self._taken = self._next
        return moved
