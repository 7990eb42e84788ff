"""A file of facial landmarks, found by the names of images."""

import hashlib
from array import array
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.align import Points


class Landmarks:
    """The landmarks of a text file of lines `path_or_key x1 y1 ... x5 y5` (pixels of the source
    image), at 88 bytes a line whatever the names.

    Raises `UserError` naming file:line for a line that is none, and for a name that stands twice.
    """

    def __init__(self, path: Path) -> None:
        values, digests = array("d"), bytearray()
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                name, *numbers = line.rsplit(maxsplit=10)
                try:
                    values.extend([float(n) for n in numbers])
                except ValueError:
                    numbers = []
                if len(numbers) != 10:
                    raise UserError(
                        f"{path}:{number}: expected `path_or_key x1 y1 x2 y2 x3 y3 x4 y4 x5 y5`, "
                        f"got {line.strip()[:80]!r}"
                    )
                digests += _digest(name.strip())
        # Names are compared by 64 bits of a hash, so that they cost no objects.
        words = np.frombuffer(bytes(digests), np.uint64)
        order = np.argsort(words, kind="stable")
        self._words, self._points = words[order], np.array(values).reshape(-1, 5, 2)[order]
        if (twice := np.flatnonzero(self._words[1:] == self._words[:-1])).size:
            raise UserError(
                f"{path}: entry {order[twice[0] + 1] + 1} has the name of entry "
                f"{order[twice[0]] + 1}; each image has one line"
            )
        self.sha256 = hashlib.sha256(words.tobytes() + self._points.tobytes()).hexdigest()

    def find(self, *names: str) -> Points | None:
        """Find the landmarks (5 x 2) of the first of the names that has some."""
        for name in names:
            word = np.frombuffer(_digest(name), np.uint64)[0]
            row = int(np.searchsorted(self._words, word))
            if row < len(self._words) and self._words[row] == word:
                found: Points = self._points[row]
                return found
        return None


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
