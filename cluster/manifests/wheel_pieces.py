"""Wheels in folders of bounded size, so that each can be carried alone; a wheel that is larger than
that is split."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Part:
    """A run of bytes of a wheel, which becomes a file."""

    wheel: Path
    name: str
    first: int
    size: int


def write_pieces(wheels: Sequence[Path], out: Path, piece_bytes: int) -> list[dict[str, Any]]:
    """Write the wheels into folders `out/piece-NN` of at most `piece_bytes` bytes, as whole files
    or as `NAME.part-NNN-of-NNN`. Returns what the manifest says of each wheel: its name, size and
    SHA-256, and the same of its files, in their order."""
    parts = [part for wheel in sorted(wheels) for part in _parts(wheel, piece_bytes)]
    pieces = _packed(parts, piece_bytes)
    width = max(2, len(str(len(pieces))))
    folder_of = {
        part: f"piece-{number:0{width}}" for number, piece in enumerate(pieces, 1) for part in piece
    }
    found: dict[Path, dict[str, Any]] = {}
    for wheel in sorted(wheels):
        whole, files = hashlib.sha256(), []
        with wheel.open("rb") as content:
            for part in (part for part in parts if part.wheel == wheel):
                path = out / folder_of[part] / part.name
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = _copied(content, path, part.size, whole)
                facts = {"path": f"{folder_of[part]}/{part.name}", "bytes": part.size}
                files.append({**facts, "sha256": digest})
        size = wheel.stat().st_size
        facts = {"name": wheel.name, "bytes": size, "sha256": whole.hexdigest()}
        found[wheel] = {**facts, "files": files}
    return list(found.values())


def _parts(wheel: Path, piece_bytes: int) -> list[_Part]:
    size = wheel.stat().st_size
    if size <= piece_bytes:
        return [_Part(wheel, wheel.name, 0, size)]
    count = math.ceil(size / piece_bytes)
    return [
        _Part(
            wheel,
            f"{wheel.name}.part-{number + 1:03}-of-{count:03}",
            number * piece_bytes,
            min(piece_bytes, size - number * piece_bytes),
        )
        for number in range(count)
    ]


def _packed(parts: Sequence[_Part], piece_bytes: int) -> list[list[_Part]]:
    """The parts in pieces: the largest first, each into the first piece that has room."""
    pieces: list[list[_Part]] = []
    room: list[int] = []
    for part in sorted(parts, key=lambda part: -part.size):
        fitting = (number for number, free in enumerate(room) if free >= part.size)
        number = next(fitting, len(pieces))
        if number == len(pieces):
            pieces.append([])
            room.append(piece_bytes)
        pieces[number].append(part)
        room[number] -= part.size
    return pieces


def _copied(source: BinaryIO, path: Path, size: int, whole: Any) -> str:
    """Copy the next `size` bytes to a new file; returns their SHA-256 and counts them in
    `whole`."""
    own = hashlib.sha256()
    with path.open("wb") as file:
        while size:
            block = source.read(min(size, _CHUNK))
            assert block, f"{path.name}: the wheel is shorter than it was"
            file.write(block)
            own.update(block)
            whole.update(block)
            size -= len(block)
    return own.hexdigest()
