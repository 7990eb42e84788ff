"""Zip archives read in place: the central directory as a stream of entries, and one member at its
offset.

Python's `zipfile` makes an object of every member when it opens; an archive of WebFace260M has
millions. The layout is that of PKWARE APPNOTE 6.3.10.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from manyfaces.configs.errors import UserError
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.read_at import read_at
from manyfaces.data.sources.source import Dropped

STORED, DEFLATED = 0, 8
FLAG_ENCRYPTED = 0x1
# Signature, flags, method, CRC, stored size, full size, bytes of name, extra field and comment,
# offset of the local header.
_ENTRY = struct.Struct("<4s4xHH4xLLLHHH8xL")
# Signature, number of this disk, entries, bytes and offset of the directory.
_END = struct.Struct("<4sH4xHLL2x")
# Signature, entries, bytes and offset of the directory.
_END64 = struct.Struct("<4s28xQQQ")
# Signature, offset of the zip64 end of directory.
_LOCATOR = struct.Struct("<4s4xQ4x")
_LOCAL_BYTES, _COMMENT_BYTES = 30, 1 << 16
_COUNT_BITS = 0xFFFF
_TOO_LARGE = f"a zip member of more than {MOST_BYTES:,} bytes"
_FULL = 0xFFFFFFFF
"""Stands in a 32-bit field whose number is in the zip64 extra field."""


class Entry(NamedTuple):
    """One line of the central directory."""

    name: str
    offset: int
    """Where the member's local header begins."""
    size: int
    """Bytes as stored."""
    method: int
    """The compression method; -1 where the member is encrypted."""
    crc: int


class MemberAt(NamedTuple):
    """The place of an image that is one member of an archive."""

    path: str
    entry: Entry

    def __str__(self) -> str:
        return f"{self.path}:{self.entry.name}"

    def read(self) -> bytes:
        """Read and unpack the member. Raises `Dropped`."""
        _, offset, size, method, crc = self.entry
        if method < 0:
            raise Dropped("an encrypted zip member")
        if method not in (STORED, DEFLATED):
            raise Dropped(f"zip compression method {method}; repack with deflate or none")
        if size > MOST_BYTES:
            raise Dropped(_TOO_LARGE)
        local = read_at(self.path, offset, _LOCAL_BYTES)
        if local[:4] != b"PK\x03\x04" or len(local) < _LOCAL_BYTES:
            raise Dropped("no zip member where the directory has one")
        name_bytes, extra_bytes = struct.unpack_from("<2H", local, 26)
        blob = read_at(self.path, offset + _LOCAL_BYTES + name_bytes + extra_bytes, size)
        if method == DEFLATED:
            try:
                blob = _inflated(blob)
            except zlib.error as error:
                raise Dropped("a zip member that does not unpack") from error
        if zlib.crc32(blob) != crc:
            raise Dropped("a zip member whose checksum is wrong")
        return blob


def _inflated(body: bytes) -> bytes:
    """The unpacked bytes. Raises `Dropped` for too many, which a few can unpack to, and
    `zlib.error`."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    blob = unpacker.decompress(body, MOST_BYTES + 1)
    if len(blob) > MOST_BYTES:
        raise Dropped(_TOO_LARGE)
    if not unpacker.eof:
        raise zlib.error("not the whole member")
    return blob


def entries(path: Path) -> Iterator[Entry]:
    """Go through the archive's members, folders left out. Raises `UserError` for a file that is no
    whole zip archive."""
    with path.open("rb") as file:
        directory = _find_directory(path, file)
        file.seek(directory.before + directory.start)
        end, number = file.tell() + directory.length, 0
        # Its own count is no bound: some writers leave out the bits that do not fit its two bytes.
        while file.tell() < end:
            fixed = file.read(_ENTRY.size)
            if len(fixed) < _ENTRY.size or fixed[:4] != b"PK\x01\x02":
                raise _not_whole(
                    path, f"directory entry {number:,} of {directory.entries:,} is none"
                )
            entry, number = _read_entry(fixed, file, directory.before), number + 1
            if entry.offset + entry.size > directory.before + directory.start:
                raise _not_whole(path, f"{entry.name} lies outside of it")
            if entry.name and not entry.name.endswith("/"):
                yield entry
        if number & _COUNT_BITS != directory.entries & _COUNT_BITS or file.tell() != end:
            raise _not_whole(
                path, f"its directory has {number:,} entries and counts {directory.entries:,}"
            )


class _Directory(NamedTuple):
    """The central directory of an archive."""

    entries: int
    length: int
    """In bytes."""
    start: int
    """Where it begins, counted from the start of the archive."""
    before: int
    """Bytes that stand in the file before the archive, as in a self-extracting one."""


def _find_directory(path: Path, file: BinaryIO) -> _Directory:
    size = path.stat().st_size
    tail_at = max(size - _COMMENT_BYTES - _END.size - _LOCATOR.size - _END64.size, 0)
    file.seek(tail_at)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END.size:
        raise _not_whole(path, f"no end of directory in its {size:,} bytes")
    _, disk, count, length, start = _END.unpack_from(tail, end)
    directory_end = tail_at + end
    locator = end - _LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        end64_at = _LOCATOR.unpack_from(tail, locator)[1]
        file.seek(min(end64_at, size))
        end64 = file.read(_END64.size)
        if len(end64) < _END64.size or end64[:4] != b"PK\x06\x06":
            raise _not_whole(path, "its zip64 end of directory is not where it says")
        _, count, length, start = _END64.unpack(end64)
        directory_end = tail_at + locator - _END64.size
    if disk not in (0, 0xFFFF):
        raise UserError(
            f"{path}: one part of a split archive; join the parts first (`zip -s 0 {path.name} "
            "--out whole.zip`)"
        )
    before = directory_end - length - start
    if before < 0:
        raise _not_whole(path, "its directory does not fit before its end")
    return _Directory(count, length, start, before)


def _read_entry(fixed: bytes, file: BinaryIO, before: int) -> Entry:
    """Read the rest of an entry, whose fixed part has been read from the file."""
    _, flags, method, crc, stored, full, name_bytes, extra_bytes, comment_bytes, offset = (
        _ENTRY.unpack(fixed)
    )
    rest = file.read(name_bytes + extra_bytes + comment_bytes)
    extra = rest[name_bytes : name_bytes + extra_bytes]
    name = _decoded(rest[:name_bytes], extra)
    if _FULL in (stored, full, offset):
        stored, offset = _from_zip64_field(extra, stored, full, offset)
    if flags & FLAG_ENCRYPTED:
        method = -1
    return Entry(name, before + offset, stored, method, crc)


def _decoded(name: bytes, extra: bytes) -> str:
    """A member's name with `/` between its parts, by what its bytes are: many writers leave out the
    flag of UTF-8, and some write backslashes. Names that are not UTF-8 are in code page 437, as the
    format has it."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = _unicode_path(name, extra) or name.decode("cp437")
    parts = text.replace("\\", "/").split("/")
    # An empty part at the end marks a folder.
    kept = [part for part in parts[:-1] if part not in ("", ".")]
    return "/".join([*kept, parts[-1]])


def _unicode_path(name: bytes, extra: bytes) -> str:
    """The name in the Unicode path field of Info-ZIP, which holds a version, the CRC of the name in
    the header, and the name; "" where there is none for this name."""
    field = _field(extra, 0x7075)
    if len(field) > 5 and int.from_bytes(field[1:5], "little") == zlib.crc32(name):
        return field[5:].decode(errors="replace")
    return ""


def _field(extra: bytes, wanted: int) -> bytes:
    """The body of one of the extra fields; empty where it is not there."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return b""


def _from_zip64_field(extra: bytes, stored: int, full: int, offset: int) -> tuple[int, int]:
    """Stored size and offset from the zip64 extra field, which holds those of (full, stored,
    offset) that are all ones, in this order."""
    field = _field(extra, 1)
    numbers = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
    if full == _FULL:
        next(numbers, None)
    if stored == _FULL:
        stored = next(numbers, stored)
    if offset == _FULL:
        offset = next(numbers, offset)
    return stored, offset


def _not_whole(path: Path, why: str) -> UserError:
    return UserError(f"{path}: not a whole zip archive ({why}); fetch it again")
