"""An MXNet `.rec`, as im2rec and InsightFace write it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyfaces.data.sources.face_records import RecordAt, read_records
from manyfaces.data.sources.source import Claim, Source, files_with_suffix


class Records(Source):
    """The images of an MXNet `.rec`. Identities are named by their labels, images by their keys.
    Raises `UserError` as `read_records` does."""

    kind, described = "rec", "an MXNet .rec (with its .idx)"
    precedence = 10

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        return [Claim([file]) for file in files_with_suffix(path, ".rec")]

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        (file,) = files
        found = read_records(file)
        labels, codes_N = np.unique(found.label_N, return_inverse=True)
        self.path, self._file, self.notes = path, str(file), found.notes
        self._key_N, self._offset_N = found.key_N, found.offset_N
        self.identities = [str(label) for label in labels.tolist()]
        self.label_N = codes_N.astype(np.int32)
        columns = (found.key_N, found.offset_N, found.label_N)
        self.digest = hashlib.sha256(b"".join(c.tobytes() for c in columns)).hexdigest()

    def place(self, row: int) -> RecordAt:
        return RecordAt(self._file, int(self._offset_N[row]), int(self._key_N[row]))

    def name(self, row: int) -> str:
        return str(self._key_N[row])
