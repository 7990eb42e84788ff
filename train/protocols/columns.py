"""Lists of images in columns, with commas, tabs or spaces between."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.errors import UserError

_WORDS = {
    "file": "path file image filename name",
    "identity": "identity id label person subject pid class",
    "camera": "camera cam camid camera_id",
}
_COLUMN_OF = {word: column for column, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True)
class Columns:
    """The rows of a list."""

    files: list[str]
    """Absolute, or relative to where the program runs if the list is."""
    identities: list[str]
    cameras: list[str] | None
    """None where the list has no such column."""


def read_columns(path: Path) -> Columns:
    """The columns path, identity and camera of a list; paths are relative to its folder.

    A first line that names columns says which is which; without one they are the first, the second
    and, where there is one, the third. Raises `UserError` naming file:line for a row that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    rows = _rows(path, text)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: no lines in it; expected path, identity and perhaps camera")
    number, cells = first
    named: list[str | None] = [_COLUMN_OF.get(cell.strip().lower()) for cell in cells]
    has_header = "file" in named or "identity" in named
    if not has_header:
        named[:] = ("file", "identity", "camera")[: max(len(cells), 2)]
    at = {column: place for place, column in enumerate(named) if column is not None}
    for column in ("file", "identity"):
        if column not in at:
            words = ", ".join(_WORDS[column].split())
            raise UserError(f"{path}:{number}: no column of the {column}; name one of {words}")
    read = Columns([], [], [] if "camera" in at else None)
    for number, cells in rows if has_header else _rows(path, text):
        if len(cells) != len(named):
            raise UserError(f"{path}:{number}: {len(cells)} columns, expected {len(named)}")
        values = {column: cells[place].strip() for column, place in at.items()}
        if not all(values.values()):
            raise UserError(f"{path}:{number}: an empty cell; expected {', '.join(at)}")
        read.files.append(str(path.parent / values["file"]))
        read.identities.append(values["identity"])
        if read.cameras is not None:
            read.cameras.append(values["camera"])
    if not read.files:
        raise UserError(f"{path}: only a header line in it")
    return read


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    lines = text.splitlines()
    first = lines[0] if lines else ""
    delimiter = next((mark for mark in "\t," if mark in first), " ")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from error
