"""Archives written by Python's `zipfile`, read here without it."""

import struct
import zipfile
from pathlib import Path

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.source import Dropped
from manyfaces.data.sources.zip_directory import MemberAt, entries

BODIES = {"0/0_0_1/a.jpg": b"stored" * 9, "0/0_0_1/grün é.jpg": b"", "0/0_0_2/b.jpg": b"a" * 5000}


def write(
    path: Path, method: int = zipfile.ZIP_STORED, before: bytes = b"", comment: bytes = b""
) -> Path:
    with path.open("wb") as file:
        file.write(before)
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.mkdir("0")
            for name, body in BODIES.items():
                archive.writestr(name, body)
            archive.comment = comment
    return path


def read(path: Path) -> dict[str, bytes]:
    return {entry.name: MemberAt(str(path), entry).read() for entry in entries(path)}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("before", "comment"), [(b"", b""), (b"#!/bin/sh\n", b"a comment, PK or not")]
)
def test_members_come_back(tmp_path: Path, method: int, before: bytes, comment: bytes) -> None:
    assert read(write(tmp_path / "a.zip", method, before, comment)) == BODIES


@pytest.mark.parametrize("before", [b"", b"in front"])
def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """zipfile writes 64-bit fields beyond this limit, which is 2 GiB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 60)
    path = write(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, before)
    assert b"PK\x06\x06" in path.read_bytes()
    assert read(path) == BODIES


def test_more_entries_than_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    assert read(write(tmp_path / "a.zip")) == BODIES


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a.zip: not a whole zip archive"):
        list(entries(path))
    whole = write(path).read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="not a whole zip archive"):
            list(entries(path))
    path.write_bytes(whole[100:])
    with pytest.raises(UserError, match="its directory does not fit"):
        list(entries(path))
    at = whole.index(b"PK\x01\x02") + 1
    path.write_bytes(whole[:at] + b"?" + whole[at + 1 :])
    with pytest.raises(UserError, match=r"directory entry 0 of 4 is none"):
        list(entries(path))


def test_members_that_are_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    first, *_, last = entries(path)
    blob = bytearray(path.read_bytes())
    blob[first.offset] = 0
    blob[-len(blob) + last.offset + 30 + len(last.name)] ^= 0xFF
    path.write_bytes(blob)
    with pytest.raises(Dropped, match="no zip member"):
        MemberAt(str(path), first).read()
    with pytest.raises(Dropped, match=r"does not unpack|checksum"):
        MemberAt(str(path), last).read()
    with pytest.raises(Dropped, match="checksum"):
        MemberAt(str(write(tmp_path / "b.zip")), first._replace(crc=1, method=0, size=3)).read()
    for method, match in ((-1, "encrypted"), (12, "compression method 12")):
        with pytest.raises(Dropped, match=match):
            MemberAt(str(path), first._replace(method=method)).read()


def test_a_count_of_which_two_bytes_are_left(tmp_path: Path) -> None:
    """Writers without zip64 leave out the other bits: 65,536 entries and three are counted as
    three."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(65_539):
            archive.writestr(zipfile.ZipInfo(f"a/{number}.jpg"), b"")
    body = path.read_bytes()
    at = body.rindex(b"PK\x06\x06")
    start = int.from_bytes(body[at + 48 : at + 56], "little")
    length = int.from_bytes(body[at + 40 : at + 48], "little")
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 3, 3, length, start, 0)
    path.write_bytes(body[:at] + end)
    assert sum(1 for _ in entries(path)) == 65_539
    path.write_bytes(body[:at] + end.replace(b"\x03\0\x03\0", b"\x04\0\x04\0"))
    with pytest.raises(UserError, match="has 65,539 entries and counts 4"):
        list(entries(path))


def test_a_member_that_inflates_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", bytes(MOST_BYTES + 1))
    (entry,) = entries(path)
    with pytest.raises(Dropped, match="more than 67,108,864 bytes"):
        MemberAt(str(path), entry).read()
