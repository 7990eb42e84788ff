"""The container MXNet RecordIO (`.rec` with `.idx`), read without MXNet.

A file (dmlc-core `include/dmlc/recordio.h`) is a sequence of u32 magic, u32 continuation << 29 |
length, payload, and zeros up to a multiple of 4, all little-endian. A payload that holds the magic
at a multiple of 4 is split there: continuation 1, 2, 3 are its first, middle and last part, 0 is a
whole record.
"""

import struct
from array import array
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.read_at import raise_if_disk_failed, read_at

MAGIC, MAGIC_BYTES = 0xCED7230A, 4
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
PREFIX_BYTES = 8
"""Magic, and continuation with length."""

Ints = NDArray[np.int64]
T = TypeVar("T", int, NDArray[np.int64])


class TooLongError(ValueError):
    """Raised for a record of more bytes than are read at once."""


def read_payload(path: str, offset: int, most_bytes: int | None = None) -> bytes:
    """Read the payload of the record at `offset`, its parts joined by the magic that split them.
    Raises `ValueError` naming the byte, and `TooLongError` before more than `most_bytes` are
    read."""
    parts: list[bytes] = []
    total = 0
    while True:
        prefix = read_at(path, offset, PREFIX_BYTES).ljust(PREFIX_BYTES, b"\0")
        magic, word = struct.unpack("<II", prefix)
        continuation, length = word >> LENGTH_BITS, word & LENGTH_MASK
        total += length + MAGIC_BYTES
        if magic == MAGIC and most_bytes is not None and total > most_bytes:
            raise TooLongError(f"a record of more than {most_bytes:,} bytes at byte {offset}")
        part = read_at(path, offset + PREFIX_BYTES, length)
        expected = (MIDDLE, LAST) if parts else (WHOLE, FIRST)
        if magic != MAGIC or len(part) != length or continuation not in expected:
            what = "next part of a record" if parts else "whole record"
            raise ValueError(f"no {what} at byte {offset}")
        parts.append(part)
        if continuation in (WHOLE, LAST):
            return struct.pack("<I", MAGIC).join(parts)
        offset += PREFIX_BYTES + padded(length)


def scan_offsets(path: Path) -> Ints:
    """Find the byte offset of every record by reading the prefixes one after the other. Raises
    `UserError` naming the byte where there is none."""
    offsets, inside, at = array("q"), False, 0
    size = path.stat().st_size
    while at < size:
        prefix = read_at(str(path), at, PREFIX_BYTES).ljust(PREFIX_BYTES, b"\0")
        magic, word = struct.unpack("<II", prefix)
        continuation, length = word >> LENGTH_BITS, word & LENGTH_MASK
        expected = (MIDDLE, LAST) if inside else (WHOLE, FIRST)
        if magic != MAGIC or continuation not in expected:
            raise UserError(
                f"{path}: no record at byte {at:,} of {size:,}: its magic is not there; fetch or "
                "write the file again"
            )
        if at + PREFIX_BYTES + length > size:
            raise UserError(
                f"{path}: cut off inside the record at byte {at:,}; fetch or write the file again"
            )
        if not inside:
            offsets.append(at)
        inside = continuation in (FIRST, MIDDLE)
        at += PREFIX_BYTES + padded(length)
    if inside:
        raise UserError(
            f"{path}: cut off inside the record at byte {offsets[-1]:,}, between two of its parts; "
            "fetch or write the file again"
        )
    return np.array(offsets, np.int64)


def record_end(path: str, offset: int) -> int:
    """The byte behind the whole record at `offset`, all its parts and zeros included. Raises
    `ValueError` or `struct.error` where they are not all there."""
    expected = (WHOLE, FIRST)
    while True:
        magic, word = struct.unpack("<II", read_at(path, offset, PREFIX_BYTES))
        if magic != MAGIC or word >> LENGTH_BITS not in expected:
            raise ValueError(f"no next part of a record at byte {offset}")
        expected = (MIDDLE, LAST)
        offset += PREFIX_BYTES + padded(word & LENGTH_MASK)
        if word >> LENGTH_BITS in (WHOLE, LAST):
            return offset


def read_idx(path: Path) -> tuple[Ints, Ints]:
    """Read keys and byte offsets of an `.idx` (lines `key<TAB>offset`), by key. Raises
    `UserError`."""
    read = pa.csv.ReadOptions(column_names=["key", "offset"])
    convert = pa.csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()})
    try:
        table = pa.csv.read_csv(path, read, pa.csv.ParseOptions(delimiter="\t"), convert)
    except (pa.ArrowException, OSError) as error:
        raise_if_disk_failed(error, path)
        raise UserError(
            f"{path}: expected lines `key<TAB>byte offset` ({str(error).splitlines()[0]}); remove "
            "it to have it rebuilt"
        ) from error
    if not len(table) or table["key"].null_count or table["offset"].null_count:
        raise UserError(
            f"{path}: expected lines `key<TAB>byte offset`, and has none or an empty one; remove "
            "it to have it rebuilt"
        )
    key_N, offset_N = table["key"].to_numpy(), table["offset"].to_numpy()
    order = np.argsort(key_N, kind="stable")
    key_N, offset_N = key_N[order], offset_N[order]
    if (twice := np.flatnonzero(np.diff(key_N) == 0)).size:
        raise UserError(
            f"{path}: key {key_N[twice[0]]} stands in two lines; remove it to have it rebuilt"
        )
    return key_N, offset_N


def padded(length: T) -> T:
    """The length, or lengths, with the zeros that follow up to a multiple of 4."""
    return (length + 3) // 4 * 4
