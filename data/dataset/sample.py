"""One sample on disk, which is a JPEG and a label as two neighbouring members of a WebDataset shard
(`KEY.jpg`, and `KEY.cls` or `KEY.json`)."""

import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.limits import MOST_BYTES, MOST_PIXELS

JPEG_SUFFIXES = ("jpg", "jpeg")
LABEL_SUFFIXES = ("cls", "json")
_HEADER_BYTES = 4096
# The second byte of JPEG markers (ITU T.81, table B.1). Frames are C0 to CF, apart from three that
# are tables and extensions.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_NO_SEGMENT = frozenset([0x01, *range(0xD0, 0xDA)])
_BETWEEN_SCANS = frozenset([0xC4, 0xCC, _SCAN, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)])
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker in the data of a scan: 00 stands behind a byte FF of the data, D0 to D7 are restarts."""
TAR_BLOCK = 512
TAR_NAME = 100
"""Bytes of a name in a member's own header."""


class Sample(NamedTuple):
    """Where a sample's JPEG lies in its shard, and whose face it is."""

    key: str
    offset: int
    size: int
    identity: int


def member_at(shard: Path, offset: int) -> tuple[str, int]:
    """Read name and size of the tar member whose data begin at `offset`: ("", -1) where no member
    does."""
    with shard.open("rb") as file:
        file.seek(max(offset - TAR_BLOCK, 0))
        header = file.read(TAR_BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError):
        return "", -1
    return info.name, info.size


def jpeg_size(blob: bytes) -> tuple[int, int] | None:
    """Read (height, width) from the frame header (ITU T.81, B.2.2) of a JPEG or of its first bytes;
    None where it is not in them."""
    return _read_headers(blob)[0]


def whole_jpeg(blob: NDArray[np.uint8] | bytes) -> bool:
    """Say whether the bytes hold a JPEG from its start marker to its end marker. What stands behind
    the end does not matter: a line feed, a camera's trailer, a second image. A decoder paints what
    is missing gray without an error."""
    body = bytes(blob)
    return _reaches_end(body, _read_headers(body)[1])


def usable_jpeg(blob: NDArray[np.uint8] | bytes) -> bool:
    """Say whether the bytes hold a whole JPEG that is not too large, in one pass."""
    if len(blob) > MOST_BYTES:
        return False
    body = bytes(blob)
    size, scan_at = _read_headers(body)
    return (size is None or size[0] * size[1] <= MOST_PIXELS) and _reaches_end(body, scan_at)


def too_large(blob: NDArray[np.uint8] | bytes) -> bool:
    """Say whether an encoded image has more bytes or, by the header of a JPEG or PNG, more pixels
    than an image may have."""
    if len(blob) > MOST_BYTES:
        return True
    head = bytes(blob[:_HEADER_BYTES])
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        size: tuple[int, int] | None = (
            int.from_bytes(head[20:24]),
            int.from_bytes(head[16:20]),
        )
    else:
        size = jpeg_size(head)
        if size is None and len(blob) > len(head):  # other data may stand before the frame header
            size = jpeg_size(bytes(blob))
    return size is not None and size[0] * size[1] > MOST_PIXELS


def _read_headers(blob: bytes) -> tuple[tuple[int, int] | None, int]:
    """Go from segment to segment up to the first scan; returns height and width of the frame, and
    where the scan's data begin (-1: nowhere)."""
    size, at, end = None, 2, len(blob)  # after the start marker
    if blob[:3] != b"\xff\xd8\xff":
        return None, -1
    while at + 4 <= end:
        if blob[at] != 0xFF:  # decoders pass over bytes that belong to no segment
            at = blob.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = blob[at + 1]
        if marker == 0xFF:  # any number of them may stand before a marker
            at += 1
            continue
        if marker in _FRAMES and at + 9 <= end:
            height, width = blob[at + 5 : at + 7], blob[at + 7 : at + 9]
            size = int.from_bytes(height), int.from_bytes(width)
        at += 2 + (blob[at + 2] << 8 | blob[at + 3])
        if marker == _SCAN:
            return size, at if at < end else -1
        if marker in _NO_SEGMENT:
            break
    return size, -1


def _reaches_end(blob: bytes, at: int) -> bool:
    """Whether the scans of a JPEG, the first of which has its data at `at`, reach the end marker.

    A scan's data hold no marker, so that the first that is no segment's and not the end belongs to
    what was put behind an image that is cut off.
    """
    if at < 0:
        return False
    while (found := _MARKER.search(blob, at)) is not None:
        marker, at = blob[found.end() - 1], found.end()
        if marker == 0xD9:
            return True
        if marker not in _BETWEEN_SCANS:
            return False
        at += int.from_bytes(blob[at : at + 2])
    return False
