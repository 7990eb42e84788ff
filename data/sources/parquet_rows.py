"""Rows of parquet files with image bytes and a label column (`datasets` features Image and
ClassLabel).

An image is a struct {bytes, path} or plain binary; labels are integers (named in the schema's
"huggingface" metadata) or texts.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.read_at import raise_if_disk_failed
from manyfaces.data.sources.source import TOO_MANY_BYTES, Dropped
from manyfaces.data.sources.text_column import TextColumn

LABEL_NAMES = {"label", "labels", "identity", "identity_id", "person", "person_id", "subject"}
LABEL_NAMES |= {
    "subject_id",
    "class",
    "class_id",
    "cls",
    "target",
    "celeb_id",
    "fine_label",
    "name",
}
_BATCH_ROWS = 64
_BATCH_BYTES = 2 * MOST_BYTES


class RowAt(NamedTuple):
    """The place of an image in one row of a file; the row is counted from the start of its row
    group."""

    path: str
    group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.path}:row group {self.group}, row {self.row}"

    def read(self) -> bytes:
        """Read the image's bytes; it is cheap where rows are read in their order. Raises `Dropped`,
        and `OSError` for a disk that fails."""
        try:
            value = _cursor(self.path, self.group, self.column).get(self.row)
        except (pa.ArrowException, OSError, StopIteration) as error:
            _cursor.cache_clear()
            raise_if_disk_failed(error, self.path)
            raise Dropped("a row that cannot be read") from error
        if len(value) > MOST_BYTES:
            raise Dropped(TOO_MANY_BYTES)
        if not len(value):
            raise Dropped("no image bytes in the row")
        return bytes(value)


@dataclass(frozen=True)
class Rows:
    """All rows of the files, as columns."""

    identities: list[str]
    label_N: NDArray[np.int32]
    group_N: NDArray[np.int32]
    """Row groups counted over all files."""
    first_G: NDArray[np.int64]
    """The first row of each row group."""
    place_G: list[tuple[Path, int]]
    """File and number in it of each row group."""
    names: TextColumn
    """The image's path in the dataset it comes from; "" where it has none."""
    image_column: str


class _Cursor:
    """A pass through one column of a row group, which holds few rows; going back starts again."""

    def __init__(self, path: str, group: int, column: str) -> None:
        self.place = path, group, column
        self.rewind()

    def rewind(self) -> None:
        path, group, column = self.place
        # Without these two a whole row group would be held, which may be a whole file.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        kind = file.schema_arrow.field(column).type
        leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
        # The file says how many bytes the group has, and not which row has them: with large rows,
        # few are held.
        facts = file.metadata.row_group(group)
        per_row = facts.total_byte_size // max(facts.num_rows, 1)
        rows = int(np.clip(_BATCH_BYTES // max(per_row, 1), 1, _BATCH_ROWS))
        self.batches: Iterator[Any] = file.iter_batches(
            rows, row_groups=[group], columns=[leaf], use_threads=False
        )
        self.start, self.values = 0, pa.array([])

    def get(self, row: int) -> memoryview:
        """The bytes of the row without a copy; none where it is null."""
        if row < self.start:
            self.rewind()
        while row >= self.start + len(self.values):
            self.start += len(self.values)
            column = next(self.batches).column(0)
            self.values = column.field("bytes") if pa.types.is_struct(column.type) else column
        buffer = self.values[row - self.start].as_buffer()
        return memoryview(buffer or b"")


@lru_cache(1)
def _cursor(path: str, group: int, column: str) -> _Cursor:
    return _Cursor(path, group, column)


def read_rows(
    paths: Sequence[Path],
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    needs_labels: bool = True,
) -> Rows:
    """Read labels and names of all rows; images are not touched.

    With `needs_labels` false there need be no label column, and rows without a label are of the
    identity "". Raises `UserError` for a file that is no parquet, columns that are missing or not
    clear, and a row without a label (file and row) where it needs one.
    """
    schema = _open(paths[0]).schema_arrow
    image = image_column or _only(
        paths[0], "image", [f.name for f in schema if _is_image(f.type)], schema
    )
    possible = [f.name for f in schema if _is_label(f.type) and f.name != image]
    usual = [name for name in possible if name.lower() in LABEL_NAMES]
    label = label_column
    if label is None and (possible or needs_labels):
        label = _only(paths[0], "label", usual or possible, schema)
    codes: dict[object, int] = {}
    classes = _class_names(paths[0], schema, label) if label else None
    place_G: list[tuple[Path, int]] = []
    labels, groups, names = [], [], TextColumn()
    for path in paths:
        file = _open(path)
        _require_column(path, file.schema_arrow, image, _is_image, "image bytes")
        if label is not None:
            _require_column(path, file.schema_arrow, label, _is_label, "integers or texts")
            _require_agreement(paths[0], path, schema, file.schema_arrow, label, classes)
        for group in range(file.num_row_groups):
            read = _read_group(path, file, group, image, label, needs_labels)
            if not read.names:
                continue
            label_codes = [codes.setdefault(value, len(codes)) for value in read.values]
            labels.append(np.array(label_codes, np.int32)[read.value_N])
            groups.append(np.full(len(read.value_N), len(place_G), np.int32))
            place_G.append((path, group))
            for name in read.names:
                names.append(name or "")
    if not place_G:
        raise UserError(f"{paths[0].parent}: no rows in {len(paths)} parquet files")
    group_N = np.concatenate(groups)
    first_G = np.searchsorted(group_N, np.arange(len(place_G)))
    identities = _identity_names(paths[0], label, classes, list(codes), needs_labels)
    return Rows(identities, np.concatenate(labels), group_N, first_G, place_G, names, image)


class _Group(NamedTuple):
    """Labels and names of one row group."""

    values: list[object]
    """The labels that occur."""
    value_N: NDArray[np.int64]
    """The label of each row, as a row of `values`."""
    names: list[str | None]


def _read_group(
    path: Path, file: Any, group: int, image: str, label: str | None, needs_labels: bool
) -> _Group:
    kind = file.schema_arrow.field(image).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    columns = [label] if label is not None else []
    columns += [f"{image}.path"] if has_path else []
    try:
        table = file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise_if_disk_failed(error, path)
        raise _not_whole(path, error) from error
    num_rows = file.metadata.row_group(group).num_rows
    if num_rows == 0:
        return _Group([], np.empty(0, np.int64), [])
    values = table[label].combine_chunks() if label is not None else pa.nulls(num_rows)
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode("mask" if needs_labels else "encode")
    if values.null_count and needs_labels:
        row = values.is_null().index(True).as_py()
        raise UserError(
            f"{path}: row group {group}, row {row}: column {label!r} is empty; every row needs a "
            "label"
        )
    names: list[str | None] = [""] * len(values)
    try:
        if has_path:
            names = table[image].combine_chunks().field("path").to_pylist()
        return _Group(values.dictionary.to_pylist(), values.indices.to_numpy(), names)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: row group {group}: a label or a path is not UTF-8; write the file again"
        ) from error


def _require_column(
    path: Path, schema: Any, name: str, fits: Callable[[Any], bool], what: str
) -> None:
    if name not in schema.names or not fits(schema.field(name).type):
        raise UserError(f"{path}: no column {name!r} of {what}; it has {_columns(schema)}")


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise_if_disk_failed(error, path)
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [""])[0]
    return UserError(f"{path}: not a whole parquet file ({why}); fetch it again")


def _is_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_type(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_label(kind: Any) -> bool:
    kind = _label_type(kind)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


def _columns(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _only(path: Path, what: str, candidates: list[str], schema: Any) -> str:
    """The one candidate. Raises `UserError` where there are several or none."""
    if len(candidates) == 1:
        return candidates[0]
    found = f"no column looks like the {what}"
    if candidates:
        found = f"{len(candidates)} columns could be the {what} ({', '.join(candidates)})"
    raise UserError(f"{path}: {found}; name it with --{what}-column. Columns: {_columns(schema)}")


def _class_names(path: Path, schema: Any, label: str) -> list[str] | None:
    """The names of a ClassLabel; None for labels that name themselves. Raises `UserError` for names
    that are none, or stand twice."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told.get("info", {}).get("features", {}).get(label, {}).get("names")
    except (ValueError, AttributeError):  # no JSON, or of another form
        return None
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: the names of column {label!r} are no list of texts")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: column {label!r} has two classes of the name {twice!r}")
    return names


def _require_agreement(
    first: Path, path: Path, schema: Any, other: Any, label: str, classes: list[str] | None
) -> None:
    """Raise `UserError` where the labels of two files mean different things."""
    are_numbers = [pa.types.is_integer(_label_type(s.field(label).type)) for s in (schema, other)]
    if are_numbers[0] != are_numbers[1]:
        numbers, texts = (first, path) if are_numbers[0] else (path, first)
        raise UserError(
            f"{path}: column {label!r} holds numbers in {numbers.name} and texts in {texts.name}; "
            "the files of one source need labels of one kind"
        )
    if path != first and _class_names(path, other, label) != classes:
        raise UserError(
            f"{path}: column {label!r} has other class names than in {first.name}, so that a "
            "number is not one person; convert the files as sources of their own"
        )


def _identity_names(
    path: Path,
    label: str | None,
    classes: list[str] | None,
    values: list[object],
    needs_labels: bool,
) -> list[str]:
    """A ClassLabel's names, else the values themselves. Raises `UserError` for a number that is no
    class (-1 says: no label), and for an empty text, or gives "" for no label where none is
    needed."""
    identities = []
    for value in values:
        if not needs_labels and value in (None, -1, ""):
            identities.append("")
            continue
        if not isinstance(value, int):
            if not str(value).strip():
                raise UserError(
                    f"{path.parent}: column {label!r} holds an empty text; leave out rows without "
                    "a label"
                )
            identities.append(str(value))
            continue
        if value < 0 or (classes and value >= len(classes)):
            raise UserError(
                f"{path.parent}: column {label!r} holds {value}, which is no class; leave out rows "
                "without a label"
            )
        identities.append(classes[value] if classes else str(value))
    return identities
