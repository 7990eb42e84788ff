"""Zip archives read in place: the central directory as a stream of entries, and one member at its
offset.

Python's `zipfile` makes an object of every member when it opens; an archive of WebFace260M has
millions. Layout: PKWARE APPNOTE 6.3.10.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.write import Dropped
from manyfaces.data.sources.bulk import read_at

STORED, DEFLATED = 0, 8
ENCRYPTED, UTF8 = 0x1, 0x800  # flag bits
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END, _END64, _LOCATOR = (
    struct.Struct("<4s4H2LH"),
    struct.Struct("<4sQ2H2L4Q"),
    struct.Struct("<4sLQL"),
)
_LOCAL_BYTES, _COMMENT_BYTES, _FULL = 30, 1 << 16, 0xFFFFFFFF


class Entry(NamedTuple):
    """One line of the central directory."""

    name: str
    offset: int
    """Of the member's local header."""
    size: int
    """Bytes as stored."""
    method: int
    """Of compression; -1 where the member is encrypted."""
    crc: int


class MemberAt(NamedTuple):
    """One member of an archive."""

    path: str
    entry: Entry

    def __str__(self) -> str:
        return f"{self.path}:{self.entry.name}"

    def read(self) -> bytes:
        """The member's bytes. Raises `Dropped`."""
        _, offset, size, method, crc = self.entry
        if method not in (STORED, DEFLATED):
            raise Dropped(
                "an encrypted zip member"
                if method < 0
                else f"zip compression method {method}; repack with deflate or none"
            )
        local = read_at(self.path, offset, _LOCAL_BYTES)
        if local[:4] != b"PK\x03\x04" or len(local) < _LOCAL_BYTES:
            raise Dropped("no zip member where the directory has one")
        name_bytes, extra_bytes = struct.unpack_from("<2H", local, 26)
        blob = read_at(self.path, offset + _LOCAL_BYTES + name_bytes + extra_bytes, size)
        try:
            blob = zlib.decompress(blob, -zlib.MAX_WBITS) if method == DEFLATED else blob
        except zlib.error as error:
            raise Dropped("a zip member that does not unpack") from error
        if zlib.crc32(blob) != crc:
            raise Dropped("a zip member whose checksum is wrong")
        return blob


def entries(path: Path) -> Iterator[Entry]:
    """The archive's members, folders left out. Raises `UserError` for a file that is no whole zip
    archive."""
    size = path.stat().st_size
    with path.open("rb") as file:
        tail_at = max(size - _COMMENT_BYTES - _END.size - _LOCATOR.size - _END64.size, 0)
        file.seek(tail_at)
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) - end < _END.size:
            raise UserError(
                f"{path}: not a whole zip archive (no end of directory in its {size:,} bytes); "
                "fetch it again"
            )
        _, disk, _, _, count, length, start, _ = _END.unpack_from(tail, end)
        directory_end = tail_at + end
        locator = end - _LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
            file.seek(_LOCATOR.unpack_from(tail, locator)[2])
            head = file.read(_END64.size)
            if len(head) < _END64.size or head[:4] != b"PK\x06\x06":
                raise UserError(
                    f"{path}: not a whole zip archive (its zip64 end of directory is not where it "
                    "says); fetch it again"
                )
            *_, count, length, start = _END64.unpack(head)
            directory_end = tail_at + locator - _END64.size
        if disk not in (0, 0xFFFF):
            raise UserError(
                f"{path}: one part of a split archive; join the parts first (`zip -s 0 {path.name} "
                "--out whole.zip`)"
            )
        before = (
            directory_end - length - start
        )  # bytes that stand before the archive, as in a self-extracting one
        if before < 0:
            raise UserError(
                f"{path}: not a whole zip archive (its directory does not fit before its end); "
                "fetch it again"
            )
        file.seek(before + start)
        for number in range(count):
            fixed = file.read(_ENTRY.size)
            if len(fixed) < _ENTRY.size or fixed[:4] != b"PK\x01\x02":
                raise UserError(
                    f"{path}: not a whole zip archive (directory entry {number:,} of {count:,} is "
                    "none); fetch it again"
                )
            (
                _,
                _,
                _,
                flags,
                method,
                _,
                _,
                crc,
                stored,
                full,
                name_bytes,
                extra_bytes,
                note_bytes,
                _,
                _,
                _,
                offset,
            ) = _ENTRY.unpack(fixed)
            rest = file.read(name_bytes + extra_bytes + note_bytes)
            name = rest[:name_bytes].decode(
                "utf-8" if flags & UTF8 else "cp437",
                "surrogateescape" if flags & UTF8 else "strict",
            )
            if name.endswith("/"):
                continue
            if _FULL in (stored, full, offset):
                stored, offset = _zip64(
                    rest[name_bytes : name_bytes + extra_bytes], stored, full, offset
                )
            yield Entry(name, before + offset, stored, -1 if flags & ENCRYPTED else method, crc)


def _zip64(extra: bytes, stored: int, full: int, offset: int) -> tuple[int, int]:
    """Stored size and offset from the zip64 extra field, which holds those of (full, stored,
    offset) that are all ones, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            words = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            next(words) if full == _FULL else None
            stored = next(words) if stored == _FULL else stored
            return stored, next(words) if offset == _FULL else offset
        at += 4 + length
    return stored, offset
