"""Tables of groups: a CSV that tells of images or of identities which group they are of."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyfaces.configs.errors import UserError

_KEYS = ("image", "identity")


@dataclass(frozen=True)
class GroupTable:
    """Which group each image or identity is of."""

    of: Literal["image", "identity"]
    column: str
    group: Mapping[str, str]
    """By the image or the identity; those with an empty cell are of none."""


def read_groups(path: Path, column: str | None = None) -> GroupTable:
    """Read the groups of one column, by default the second. Raises `UserError` with file:line for a
    table that is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                (reader.line_num, row) for reader in [csv.reader(file)] for row in reader if row
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    if not rows or rows[0][1][0].strip() not in _KEYS or len(rows[0][1]) < 2:
        raise UserError(
            f"{path}: expected a first row of names, `image` or `identity` and then a column for "
            "each way to tell groups apart"
        )
    names = [name.strip() for name in rows[0][1]]
    if column is not None and column not in names[1:]:
        raise UserError(f"{path}: no column {column}; its columns are {', '.join(names[1:])}")
    place = 1 if column is None else names.index(column)
    group: dict[str, str] = {}
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise UserError(f"{path}:{number}: {len(row)} cells; expected {len(names)}")
        key, value = row[0].strip(), row[place].strip()
        if group.setdefault(key, value) != value:
            raise UserError(
                f"{path}:{number}: {key} is of the group {value}, and of {group[key]} before"
            )
    return GroupTable(
        "image" if names[0] == "image" else "identity",
        names[place],
        {key: value for key, value in group.items() if value},
    )
