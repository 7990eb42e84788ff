"""The two ways in which face datasets lie in an MXNet `.rec`: whose image each record holds.

A payload (mxnet `recordio.py`) is u32 flag, f32 label, u64 id, u64 id2, then `flag` f32 labels in
place of the one before, then the image.

- im2rec: every record is an image.
- InsightFace (`common/rec_builder.py`): keys 1..N are images, grouped by identity, with the label
  in their own header; keys N+1..N+K are empty identity records with [first key, end key) of their
  images; key 0 is an empty record with [N+1, N+K+1), last in the file.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.float_labels import as_stored, exact_labels
from manyfaces.data.sources.read_at import read_at
from manyfaces.data.sources.recordio import (
    FIRST,
    LENGTH_BITS,
    LENGTH_MASK,
    MAGIC,
    PREFIX_BYTES,
    TooLongError,
    padded,
    read_idx,
    read_payload,
    record_end,
    scan_offsets,
)
from manyfaces.data.sources.source import TOO_MANY_BYTES, Dropped

HEADER_BYTES = 24
"""What stands before the labels or the image in a payload."""
START = np.dtype(
    [
        ("magic", "<u4"),
        ("word", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("id", "<u8"),
        ("id2", "<u8"),
        ("first", "<f4"),
        ("second", "<f4"),
    ]
)
"""The first bytes of a record: the container's prefix (continuation and length are one word), the
header, and two labels where there are any."""
START_BYTES = START.itemsize - PREFIX_BYTES
"""How many of these bytes belong to the payload."""
KEPT = ("word", "flag", "label", "first", "second")
_CHUNK = 1 << 16
_NOT_TOLD = "nothing would tell if it were cut off between two records"

Ints = NDArray[np.int64]
Starts = NDArray[np.void]


class RecordAt(NamedTuple):
    """The place of an image in one record."""

    path: str
    offset: int
    key: int

    def __str__(self) -> str:
        return f"{self.path}:{self.key}"

    def read(self) -> bytes:
        """Read the image's bytes. Raises `Dropped`, and `OSError` for a disk that fails."""
        try:
            payload = read_payload(self.path, self.offset, MOST_BYTES)
        except TooLongError as error:
            raise Dropped(TOO_MANY_BYTES) from error
        except ValueError as error:
            raise Dropped("a record that is not whole") from error
        num_labels = int.from_bytes(payload[:4], "little")
        return payload[HEADER_BYTES + 4 * num_labels :]


@dataclass(frozen=True)
class FaceRecords:
    """The images of one file, in the order of their keys."""

    key_N: Ints
    offset_N: Ints
    label_N: Ints
    notes: list[str]


def read_records(path: Path) -> FaceRecords:
    """Read where the images of a `.rec` are and whose they are, by its `.idx` if there is one, else
    by reading all prefixes in sequence; it costs one pass over the headers.

    Raises `UserError` for an empty or broken file (byte offset), an unusable label (key), and
    labels that nothing gives exactly (key).
    """
    if not path.stat().st_size:
        raise UserError(f"{path}: an empty file; fetch it again")
    idx = path.with_suffix(".idx")
    if idx.is_file():
        key_N, offset_N = read_idx(idx)
        starts = _read_starts(path, offset_N)
        _require_all(path, offset_N, starts)
    else:
        offset_N = scan_offsets(path)
        starts = _read_starts(path, offset_N)
        key_N = np.arange(len(starts))
        if _is_empty(starts)[-1]:  # InsightFace's global record: key 0, written last
            offset_N, starts = np.roll(offset_N, 1), np.roll(starts, 1)
    images, first_K = slice(None), np.zeros(0)
    empty_N = _is_empty(starts)
    if empty_N[0] and key_N[0] == 0:
        images, first_K = _insightface(path, key_N, starts, empty_N)
    key_N, offset_N, starts = key_N[images], offset_N[images], starts[images]
    if not len(starts):
        raise UserError(f"{path}: no image record in it")
    with np.errstate(invalid="ignore"):  # of labels that are no numbers, which are refused below
        rounded_N = np.where(starts["flag"] > 0, starts["first"], starts["label"]).astype(
            np.float64
        )
    usable_N = (rounded_N >= 0) & (rounded_N < 2**31) & (rounded_N == np.floor(rounded_N))
    if not usable_N.all():
        bad = int(np.argmin(usable_N))
        raise UserError(
            f"{path}: key {key_N[bad]}: label {rounded_N[bad]} is not an integer in [0, 2^31)"
        )
    label_N, notes = exact_labels(path, key_N, rounded_N, first_K)
    if not idx.is_file() and not len(first_K):
        _require_identities(path, len(np.unique(label_N)))
        notes = [*notes, f"{path.name} has no .idx and no last record of its own: {_NOT_TOLD}"]
    return FaceRecords(key_N, offset_N, label_N, notes)


def _read_starts(path: Path, offset_N: Ints) -> Starts:
    """Read the first bytes of all records. Raises `UserError` naming the byte where no record
    begins."""
    size = path.stat().st_size
    starts = np.empty(len(offset_N), [(name, START[name]) for name in KEPT])
    for begin in range(0, len(offset_N), _CHUNK):
        at_N = offset_N[begin : begin + _CHUNK]
        read = (read_at(str(path), max(at, 0), START.itemsize) for at in at_N.tolist())
        body = bytearray().join(part.ljust(START.itemsize, b"\0") for part in read)
        chunk = np.frombuffer(body, START)
        continuation_N, length_N = chunk["word"] >> LENGTH_BITS, chunk["word"] & LENGTH_MASK
        whole_N = (
            (at_N >= 0)
            & (at_N + PREFIX_BYTES + length_N <= size)
            & (chunk["magic"] == MAGIC)
            & (continuation_N <= FIRST)
        )
        if not whole_N.all():
            at = int(at_N[np.argmin(whole_N)])
            raise UserError(
                f"{path}: no whole record at byte {at:,} of {size:,}, where its .idx has one; "
                "fetch both files again"
            )
        # In a record that is split within its header or labels, other bytes stand in between.
        split_N = (continuation_N == FIRST) & (length_N < START_BYTES)
        for row in np.flatnonzero(split_N | (length_N < HEADER_BYTES)):
            chunk[row] = _joined_start(path, int(at_N[row]), chunk[row : row + 1])
        for name in KEPT:
            starts[name][begin : begin + _CHUNK] = chunk[name]
    return starts


def _require_all(path: Path, offset_N: Ints, starts: Starts) -> None:
    """Raise `UserError` where the `.idx` passes over records, names one twice, or ends before the
    last: some of its lines are not there, or are another file's."""
    order = np.argsort(offset_N, kind="stable")
    begin_N, word_N = offset_N[order], starts["word"][order].astype(np.int64)
    end_N = begin_N + PREFIX_BYTES + padded(word_N & LENGTH_MASK)
    for row in np.flatnonzero(word_N >> LENGTH_BITS == FIRST).tolist():
        at = int(begin_N[row])
        try:
            end_N[row] = record_end(str(path), at)
        except (ValueError, struct.error) as error:
            raise UserError(f"{path}: cut off in the record at byte {at:,}; fetch it again") from (
                error
            )
    expected_N = np.append(0, end_N)
    found_N = np.append(begin_N, path.stat().st_size)
    wrong = np.flatnonzero(found_N != expected_N)
    if not len(wrong):
        return
    at, found, size = int(expected_N[wrong[0]]), int(found_N[wrong[0]]), int(found_N[-1])
    remedy = "fetch the .idx again, or remove it to have it rebuilt"
    subset = (
        f"{remedy}; where lines were taken out on purpose, convert all, and take those images out "
        "by `manyfaces data forget` and `compact`"
    )
    if at > size:
        raise UserError(f"{path}: cut off inside its last record; fetch the file again")
    if found < at:
        raise UserError(f"{path}: its .idx has the record at byte {found:,} twice; {remedy}")
    if wrong[0] == len(begin_N):
        raise UserError(
            f"{path}: goes on behind the last record of its .idx, from byte {at:,} of {size:,} "
            f"({len(begin_N):,} records are listed); {subset}"
        )
    raise UserError(
        f"{path}: its .idx passes over what stands from byte {at:,} to {found:,}; {subset}"
    )


def _require_identities(path: Path, found: int) -> None:
    """Raise `UserError` where InsightFace's `property` file (`identities,height,width`) beside the
    records says that there are more identities than were found: the file was cut off."""
    told = path.with_name("property")
    number = told.read_text(errors="replace").split(",")[0].strip() if told.is_file() else ""
    if number.isdecimal() and int(number) > found:
        raise UserError(
            f"{path}: has {found:,} identities and no last record, {told} says {int(number):,}: it "
            "was cut off between two records; fetch it again"
        )


def _joined_start(path: Path, offset: int, start: Starts) -> np.void:
    """The first bytes of a record as they are once its parts are joined."""
    try:
        payload = read_payload(str(path), offset)
    except ValueError as error:
        raise UserError(f"{path}: {error}; fetch the file again") from error
    if len(payload) < HEADER_BYTES:
        raise UserError(
            f"{path}: the record at byte {offset:,} has {len(payload)} bytes, too few for an image "
            "header"
        )
    prefix = start.tobytes()[:PREFIX_BYTES]
    joined: np.void = np.frombuffer(
        prefix + payload[:START_BYTES].ljust(START_BYTES, b"\0"), START
    )[0]
    return joined


def _is_empty(starts: Starts) -> NDArray[np.bool_]:
    """Which records hold two labels and no image: InsightFace's global and identity records."""
    two_labels = HEADER_BYTES + 2 * 4
    empty: NDArray[np.bool_] = (starts["flag"] == 2) & (starts["word"] == two_labels)
    return empty


def _insightface(
    path: Path, key_N: Ints, starts: Starts, empty_N: NDArray[np.bool_]
) -> tuple[slice, NDArray[np.float64]]:
    """Which rows are images, and the (rounded) first key of each identity. The counts come from
    position; the global record must say the same."""
    identities = np.flatnonzero(empty_N[1:]) + 1
    end = int(key_N[-1]) + 1
    first_row, begin = len(key_N), end
    if len(identities):
        first_row = int(identities[0])
        begin = int(key_N[first_row])
    told = (starts["first"][0], starts["second"][0])
    if len(identities) != len(key_N) - first_row or told != tuple(
        as_stored(np.array([begin, end]))
    ):
        raise UserError(
            f"{path}: key 0 says that identity records have the keys [{told[0]:.0f}, "
            f"{told[1]:.0f}), the file has them in [{begin}, {end}); fetch it again"
        )
    with np.errstate(invalid="ignore"):
        return slice(1, first_row), starts["first"][first_row:].astype(np.float64)
