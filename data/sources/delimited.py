"""Text files of millions of lines with the same numbers and words in each, read at once."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from manyfaces.configs.errors import UserError

_SHOWN = 80
_WHOLE = re.compile(r"-?[0-9]+")


def read_delimited(
    path: Path, columns: Mapping[str, pa.DataType], *, delimiter: str = " ", header: bool = False
) -> pa.Table:
    """Read the first columns of a text file: names and types, `int32`, `float32` or `string`.

    A file with a `header` line may have further columns, which are left out. Raises `UserError` for
    a file that cannot be read or is empty, and naming file:line for a line that is no such row.
    """
    places = {f"f{number}": type_ for number, type_ in enumerate(columns.values())}
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(autogenerate_column_names=True, skip_rows=int(header)),
            parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=places,
                include_columns=list(places) if header else None,
                null_values=[],
            ),
        )
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise _first_fault(path, columns, delimiter, header, str(error)) from error
    if table.num_columns != len(columns) or table.num_rows == 0:
        raise _first_fault(path, columns, delimiter, header, "no rows in it")
    return table.rename_columns(list(columns))


def line_of(path: Path, row: int, *, header: bool = False) -> int:
    """The number of the line that a row was read from; empty lines are no rows."""
    with path.open("rb") as lines:
        numbers = (number for number, line in enumerate(lines, 1) if line.strip(b"\r\n"))
        return next(islice(numbers, row + int(header), None))


def _first_fault(
    path: Path, columns: Mapping[str, pa.DataType], delimiter: str, header: bool, otherwise: str
) -> UserError:
    """The first line that is no row; where none is found, what pyarrow said."""
    expected = delimiter.join(columns)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in islice(enumerate(lines, 1), int(header), None):
            fields = line.rstrip("\r\n").split(delimiter)
            if fields == [""]:
                continue
            counted = len(fields) >= len(columns) if header else len(fields) == len(columns)
            typed = zip(fields, columns.values(), strict=False)
            if not counted or not all(_is_of(field, type_) for field, type_ in typed):
                shown = line.strip()[:_SHOWN]
                return UserError(f"{path}:{number}: expected `{expected}`, got {shown!r}")
    return UserError(f"{path}: expected lines of `{expected}`: {' '.join(otherwise.split())}")


def _is_of(field: str, type_: pa.DataType) -> bool:
    if pa.types.is_integer(type_):
        return bool(_WHOLE.fullmatch(field)) and abs(int(field)) < 2 ** (type_.bit_width - 1)
    if pa.types.is_floating(type_):
        try:
            float(field)
        except ValueError:
            return False
    return True
