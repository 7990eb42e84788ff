"""MXNet RecordIO (`.rec` with `.idx`) without MXNet: the container, and the two ways in which face
datasets lie in it.

Container (dmlc-core `include/dmlc/recordio.h`): u32 magic, u32 cflag << 29 | length, payload, zeros
up to a multiple of 4; little-endian. A payload that holds the magic at a multiple of 4 is split
there: cflag 1, 2, 3 are its first, middle and last part, 0 is a whole record. Payload (mxnet
`recordio.py`): u32 flag, f32 label, u64 id, u64 id2, then `flag` f32 labels in place of the one
before, then the image.

- im2rec: every record is an image.
- InsightFace (`common/rec_builder.py`): keys 1..N are images, grouped by identity, the label in
  their own header; keys N+1..N+K are empty
  identity records with [first key, end key) of their images; key 0 is an empty record with [N+1,
  N+K+1), last in the file.
"""

import mmap
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.write import Dropped
from manyfaces.data.sources.bulk import read_at
from manyfaces.data.sources.float_labels import as_stored, exact_labels

MAGIC = 0xCED7230A
WHOLE, FIRST, MIDDLE, LAST = range(4)
HEADER_BYTES = 24
HEAD = np.dtype(
    [
        ("magic", "<u4"),
        ("lrec", "<u4"),
        ("flag", "<u4"),
        ("label", "<f4"),
        ("id", "<u8"),
        ("id2", "<u8"),
        ("first", "<f4"),
        ("second", "<f4"),
    ]
)
KEPT = ("lrec", "flag", "label", "first", "second")
_CHUNK = 1 << 16

Ints = NDArray[np.int64]
Heads = NDArray[np.void]


class RecordAt(NamedTuple):
    """One image record."""

    path: str
    offset: int
    key: int

    def __str__(self) -> str:
        return f"{self.path}:{self.key}"

    def read(self) -> bytes:
        """The image's bytes. Raises `Dropped`."""
        try:
            payload = read_payload(self.path, self.offset)
        except ValueError as error:
            raise Dropped("a record that is not whole") from error
        return payload[HEADER_BYTES + 4 * int.from_bytes(payload[:4], "little") :]


@dataclass(frozen=True)
class Records:
    """The images of one file, in the order of their keys."""

    key_N: Ints
    offset_N: Ints
    label_N: Ints
    notes: list[str]


def read_payload(path: str, offset: int) -> bytes:
    """The payload of the record at `offset`, its parts joined by the magic that split them. Raises
    `ValueError` naming the byte."""
    parts: list[bytes] = []
    while True:
        magic, lrec = struct.unpack("<II", read_at(path, offset, 8).ljust(8, b"\0"))
        flag, length = lrec >> 29, lrec & (1 << 29) - 1
        part = read_at(path, offset + 8, length)
        if (
            magic != MAGIC
            or len(part) != length
            or flag not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST))
        ):
            raise ValueError(
                f"no {'next part of a record' if parts else 'whole record'} at byte {offset}"
            )
        parts.append(part)
        if flag in (WHOLE, LAST):
            return struct.pack("<I", MAGIC).join(parts)
        offset += 8 + (length + 3) // 4 * 4


def scan_offsets(path: Path) -> Ints:
    """Byte offset of every record, from the headers one after the other. Raises `UserError` naming
    the byte where there is none."""
    offsets, inside, at = array("q"), False, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        while at < len(view):
            magic, lrec = struct.unpack_from("<II", view, at) if at + 8 <= len(view) else (0, 0)
            flag, end = lrec >> 29, at + 8 + (lrec & (1 << 29) - 1)
            if magic != MAGIC or flag not in ((MIDDLE, LAST) if inside else (WHOLE, FIRST)):
                raise UserError(
                    f"{path}: no record at byte {at:,} of {len(view):,}: its magic is not there; "
                    "fetch or write the file again"
                )
            if end > len(view):
                raise UserError(
                    f"{path}: cut off inside the record at byte {at:,}; fetch or write the file "
                    "again"
                )
            if not inside:
                offsets.append(at)
            inside = flag in (FIRST, MIDDLE)
            at += 8 + (end - at - 8 + 3) // 4 * 4
    return np.array(offsets, np.int64)


def read_idx(path: Path) -> tuple[Ints, Ints]:
    """Keys and byte offsets of an `.idx` (lines `key<TAB>offset`), by key. Raises `UserError`."""
    read = pa.csv.ReadOptions(column_names=["key", "offset"])
    convert = pa.csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()})
    try:
        table = pa.csv.read_csv(path, read, pa.csv.ParseOptions(delimiter="\t"), convert)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path}: expected lines `key<TAB>byte offset` ({str(error).splitlines()[0]}); remove "
            "it to have it rebuilt"
        ) from error
    key_N, offset_N = table["key"].to_numpy(), table["offset"].to_numpy()
    order = np.argsort(key_N, kind="stable")
    key_N, offset_N = key_N[order], offset_N[order]
    if (twice := np.flatnonzero(np.diff(key_N) == 0)).size:
        raise UserError(
            f"{path}: key {key_N[twice[0]]} stands in two lines; remove it to have it rebuilt"
        )
    return key_N, offset_N


def read_records(path: Path) -> Records:
    """The images of a `.rec`, by its `.idx` if there is one, else by reading all headers in
    sequence; costs one pass over the headers.

    Raises `UserError` for an empty or broken file (byte offset), an unusable label (key), and
    labels that nothing gives exactly (key).
    """
    if not path.stat().st_size:
        raise UserError(f"{path}: an empty file; fetch it again")
    idx = path.with_suffix(".idx")
    if idx.is_file():
        key_N, offset_N = read_idx(idx)
        heads = _heads(path, offset_N)
    else:
        offset_N = scan_offsets(path)
        heads = _heads(path, offset_N)
        key_N = np.arange(len(heads))
        if _is_empty(heads)[-1]:  # InsightFace's global record: key 0, written last
            offset_N, heads = np.roll(offset_N, 1), np.roll(heads, 1)
    empty_N = _is_empty(heads)
    if not (empty_N[0] and key_N[0] == 0):
        images, first_K = slice(None), np.zeros(0)
    else:
        images, first_K = _insightface(path, key_N, heads, empty_N)
    key_N, offset_N, heads = key_N[images], offset_N[images], heads[images]
    if not len(heads):
        raise UserError(f"{path}: no image record in it")
    rounded_N = np.where(heads["flag"] > 0, heads["first"], heads["label"]).astype(np.float64)
    if (
        bad := np.flatnonzero(
            ~((rounded_N >= 0) & (rounded_N < 2**31) & (rounded_N == np.floor(rounded_N)))
        )
    ).size:
        raise UserError(
            f"{path}: key {key_N[bad[0]]}: label {rounded_N[bad[0]]} is not an integer in [0, 2^31)"
        )
    label_N, notes = exact_labels(path, key_N, rounded_N, first_K)
    return Records(key_N, offset_N, label_N, notes)


def _heads(path: Path, offset_N: Ints) -> Heads:
    """What the headers of all records say. Raises `UserError` naming the byte where no record
    begins."""
    view = np.memmap(path, np.uint8, mode="r")
    heads = np.empty(len(offset_N), [(name, HEAD[name]) for name in KEPT])
    for start in range(0, len(offset_N), _CHUNK):
        at_N = offset_N[start : start + _CHUNK]
        inside_N = np.clip(at_N[:, None] + np.arange(HEAD.itemsize), 0, len(view) - 1)
        chunk = view[inside_N].view(HEAD)[:, 0]
        length_N = chunk["lrec"] & (1 << 29) - 1
        whole_N = (
            (at_N >= 0)
            & (at_N + 8 + length_N <= len(view))
            & (chunk["magic"] == MAGIC)
            & (chunk["lrec"] >> 29 <= FIRST)
        )
        if not whole_N.all():
            at = int(at_N[np.flatnonzero(~whole_N)[0]])
            raise UserError(
                f"{path}: no whole record at byte {at:,} of {len(view):,}, where its .idx has one; "
                "fetch both files again"
            )
        for row in np.flatnonzero(
            (chunk["lrec"] >> 29 == FIRST) & (length_N < HEAD.itemsize - 8)
            | (length_N < HEADER_BYTES)
        ):
            try:
                payload = read_payload(str(path), int(at_N[row]))
            except ValueError as error:
                raise UserError(f"{path}: {error}; fetch the file again") from error
            if len(payload) < HEADER_BYTES:
                raise UserError(
                    f"{path}: the record at byte {at_N[row]:,} has {len(payload)} bytes, too few "
                    "for an image header"
                )
            fields = chunk[row : row + 1].tobytes()[:8] + payload[: HEAD.itemsize - 8].ljust(
                HEAD.itemsize - 8, b"\0"
            )
            chunk[row] = np.frombuffer(fields, HEAD)[0]
        for name in KEPT:
            heads[name][start : start + _CHUNK] = chunk[name]
    return heads


def _is_empty(heads: Heads) -> NDArray[np.bool_]:
    """Which records hold two labels and no image: InsightFace's global and identity records."""
    empty: NDArray[np.bool_] = (heads["flag"] == 2) & (heads["lrec"] == HEADER_BYTES + 8)
    return empty


def _insightface(
    path: Path, key_N: Ints, heads: Heads, empty_N: NDArray[np.bool_]
) -> tuple[slice, NDArray[np.float64]]:
    """Which rows are images, and the (rounded) first key of each identity. The counts come from
    position; the global record must agree."""
    identities = np.flatnonzero(empty_N[1:]) + 1
    first = int(identities[0]) if len(identities) else len(key_N)
    begin, end = (int(key_N[first]) if len(identities) else int(key_N[-1]) + 1), int(key_N[-1]) + 1
    if len(identities) != len(key_N) - first or (heads["first"][0], heads["second"][0]) != tuple(
        as_stored(np.array([begin, end]))
    ):
        told = f"[{heads['first'][0]:.0f}, {heads['second'][0]:.0f})"
        raise UserError(
            f"{path}: key 0 says that identity records have the keys {told}, the file has them in "
            f"[{begin}, {end}); fetch it again"
        )
    return slice(1, first), heads["first"][first:].astype(np.float64)
