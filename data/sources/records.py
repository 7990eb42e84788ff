"""MXNet `.rec` files, as im2rec and InsightFace write them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.face_records import FaceRecords, RecordAt, read_records
from manyfaces.data.sources.source import Claim, Source, files_with_suffix

_CHUNK = re.compile(r"(?P<run>.+)_(?P<number>\d+)")
"""The name of a file that im2rec wrote with `--chunks`."""


class Records(Source):
    """The images of an MXNet `.rec`, or of the chunks of one run of im2rec, which share their
    labels. Identities are named by their labels, images by their keys.

    Raises `UserError` as `read_records` does, for chunks that are not all there, and for chunks
    with the same keys.
    """

    kind, described = "rec", "an MXNet .rec (with its .idx)"
    precedence, part_name = 10, _CHUNK

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        of_run: dict[str, list[Path]] = {}
        for file in files_with_suffix(path, ".rec"):
            told = _CHUNK.fullmatch(file.stem)
            run = f"{told['run']}_#" if told and path.is_dir() else file.stem
            of_run.setdefault(run, []).append(file)
        return [
            Claim(files, files[0].name if len(files) == 1 else f"{files[0].name} .. {len(files)}")
            for files in of_run.values()
        ]

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        files = sorted(files, key=_chunk_number)
        if path.is_dir() and len(files) > 1:
            _require_chunks(path, files)
        found = [read_records(file) for file in files]
        self.path, self._files = path, [str(file) for file in files]
        self.notes = [note for one in found for note in one.notes]
        keys = _keys(files, found)
        if len(files) > 1 and path.is_dir():
            names = f"{files[0].name} to {files[-1].name}"
            self.notes.append(
                f"{names}: {len(files)} chunks read as one source with one set of labels"
            )
        self._file_N = np.repeat(np.arange(len(files)), [len(one) for one in keys])
        self._key_N = np.concatenate(keys)
        self._offset_N = np.concatenate([one.offset_N for one in found])
        label_N = np.concatenate([one.label_N for one in found])
        labels, codes_N = np.unique(label_N, return_inverse=True)
        self.identities = [str(label) for label in labels.tolist()]
        self.label_N = codes_N.astype(np.int32)
        self.companions = [
            beside
            for file in files
            for beside in (
                file.with_suffix(".idx"),
                file.with_suffix(".lst"),
                file.with_name("property"),
            )
        ]
        columns = (self._key_N, self._offset_N, label_N)
        self.digest = hashlib.sha256(b"".join(c.tobytes() for c in columns)).hexdigest()

    def place(self, row: int) -> RecordAt:
        file = self._files[self._file_N[row]]
        return RecordAt(file, int(self._offset_N[row]), int(self._key_N[row]))

    def name(self, row: int) -> str:
        return str(self._key_N[row])


def _chunk_number(file: Path) -> tuple[int, str]:
    told = _CHUNK.fullmatch(file.stem)
    return (int(told["number"]) if told else 0, file.name)


def _require_chunks(path: Path, files: Sequence[Path]) -> None:
    """Raise `UserError` where a chunk is missing between the others: they count from 0."""
    numbers = [_chunk_number(file)[0] for file in files]
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing or len(set(numbers)) < len(numbers):
        wrong = f"{missing[0]} is not there" if missing else "one is there twice"
        raise UserError(
            f"{path}: {files[0].name} to {files[-1].name} are chunks of one run of im2rec, and "
            f"number {wrong}; fetch it, or name those that you want one by one"
        )


def _keys(files: Sequence[Path], found: Sequence[FaceRecords]) -> list[NDArray[np.int64]]:
    """The keys of each chunk; files without an `.idx` are numbered on. Raises `UserError` where the
    files cannot be chunks of one run."""
    keys = [one.key_N for one in found]
    if len(files) > 1 and not all(file.with_suffix(".idx").is_file() for file in files):
        firsts = np.cumsum([0] + [int(one[-1]) + 1 for one in keys])
        keys = [one + first for one, first in zip(keys, firsts, strict=False)]
    key_N = np.sort(np.concatenate(keys))
    if (twice := np.flatnonzero(np.diff(key_N) == 0)).size:
        raise UserError(
            f"{files[0].parent}: key {key_N[twice[0]]} is in two of {files[0].name} to "
            f"{files[-1].name}, which therefore are no chunks of one run of im2rec; move each to a "
            "folder of its own"
        )
    return keys
