"""Lists of pairs of images in text files.

Three forms are read, with tabs, commas or spaces between the fields:
- LFW's `pairs.txt`: `name 1 4` for images 1 and 4 of one person, `name 1 name 2` for two people,
  with or without a first line `10 300` that tells folds and pairs of each kind in a fold;
- `path path label`, where the label is 1 or 0 (or -1, true, false);
- that of CALFW and CPLFW: two lines `path label` for each pair, 0 for two people.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

_ENDINGS = (".jpg", ".png", ".jpeg", ".JPG")
_TRUE, _FALSE = {"1", "true"}, {"0", "-1", "false"}
_HEADINGS = {
    *("name", "name1", "name2", "path", "path1", "path2", "image1", "image2", "img1", "img2"),
    *("imagenum1", "imagenum2", "label", "same", "issame", "is_same"),
}
_EXPECTED = (
    "expected `name 1 4` or `name 1 name 2` as in LFW's pairs.txt, `path path label`, or two lines "
    "`path label` for each pair"
)

Row = tuple[int, list[str]]
"""The number of a line, and its fields."""


@dataclass(frozen=True)
class ListedPairs:
    """N pairs of images in files."""

    paths: list[Path]
    """2N: pair i is images 2i and 2i + 1."""
    same: NDArray[np.bool_]
    """Whether both images of each pair show one identity, bool [N]."""
    identities: list[str] | None
    """2N names of people, where the list has them."""


def read_pair_list(path: Path, root: Path | None = None) -> ListedPairs:
    """Read a list of pairs, whose images are below `root`, by default the folder of the list.
    Raises `UserError` with file:line for a line that is none and an image that is not there, and
    for a list that is shorter or longer than its first line says."""
    rows = _rows(path)
    root = path.parent if root is None else root
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the root of the images of {path}")
    counts = None
    if rows and all(field.isdigit() for field in rows[0][1]) and len(rows[0][1]) <= 2:
        counts = [int(field) for field in rows.pop(0)[1]]
    if not rows:
        raise UserError(f"{path}: no pairs in it; {_EXPECTED}")
    _check_count(path, len(rows), counts)
    if counts is not None or any(len(row) == 4 or _is_lfw(row) for _, row in rows):
        return _lfw(path, root, rows)
    if len(rows[0][1]) == 2:
        return _by_two_lines(path, root, rows)
    return _by_paths(path, root, rows)


def _rows(path: Path) -> list[Row]:
    """The fields of each line that has any, but for a line of headings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a list of pairs") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); expected a list of pairs, or a "
            "verification set in InsightFace's layout under a name that ends in .bin"
        ) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    first = lines[0][1] if lines else ""
    separator = next((mark for mark in ("\t", ",") if mark in first.strip()), None)
    if separator is None and lines[1:]:  # LFW's own first line may be written otherwise
        separator = next((mark for mark in ("\t", ",") if mark in lines[1][1].strip()), None)
    rows = [(number, _fields(line, separator)) for number, line in lines]
    if rows and all(field.lower() in _HEADINGS for field in rows[0][1]):
        rows.pop(0)
    return rows


def _fields(line: str, separator: str | None) -> list[str]:
    fields = [field.strip() for field in line.strip().split(separator)]
    if separator is not None and len(fields) == 1:
        fields = fields[0].split()
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _check_count(path: Path, pairs: int, counts: list[int] | None) -> None:
    """Raise `UserError` where there are not as many pairs as the first line says."""
    if counts is None:
        return
    wanted = 2 * counts[0] * (counts[1] if len(counts) == 2 else 1)
    if pairs != wanted:
        told = " ".join(map(str, counts))
        raise UserError(
            f"{path}: {pairs:,} pairs, and its first line, {told}, says {wanted:,}; is the file "
            "whole?"
        )


def _is_lfw(fields: Sequence[str]) -> bool:
    of_one = len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit()
    return of_one or (len(fields) == 4 and fields[1].isdigit() and fields[3].isdigit())


def _lfw(path: Path, root: Path, rows: Sequence[Row]) -> ListedPairs:
    paths, same, identities = list[Path](), list[bool](), list[str]()
    known: dict[tuple[str, str], Path] = {}
    for number, fields in rows:
        if not _is_lfw(fields):
            raise UserError(f"{path}:{number}: {' '.join(fields)!r} is no pair; {_EXPECTED}")
        first, second = (fields[0], fields[1]), (fields[-2], fields[-1])
        if len(fields) == 3:
            second = fields[0], fields[2]
        for image in (first, second):
            if image not in known:
                known[image] = _image_of(*image, root, f"{path}:{number}")
            paths.append(known[image])
            identities.append(image[0])
        same.append(first[0] == second[0])
    return ListedPairs(paths, np.array(same, bool), identities)


def _image_of(name: str, number: str, root: Path, where: str) -> Path:
    """The file of this image of a person: `NAME/NAME_0001.jpg`, or without the folder."""
    stem = f"{name}_{number.zfill(4)}"
    for ending in _ENDINGS:
        for folder in (root / name, root):
            if (file := folder / f"{stem}{ending}").is_file():
                return file
    raise UserError(
        f"{where}: {root / name / stem}.jpg (or .png) is not there; give the folder that holds a "
        "folder for each person as root"
    )


def _by_paths(path: Path, root: Path, rows: Sequence[Row]) -> ListedPairs:
    paths, same = list[Path](), list[bool]()
    known: dict[str, Path] = {}
    for number, fields in rows:
        if len(fields) != 3:
            raise UserError(f"{path}:{number}: {' '.join(fields)!r} is no pair; {_EXPECTED}")
        paths += [_file(name, root, known, f"{path}:{number}") for name in fields[:2]]
        label = fields[2].lower()
        if label not in _TRUE | _FALSE:
            raise UserError(
                f"{path}:{number}: the label of the pair is {fields[2]!r}; expected 1 for one "
                "identity, and 0 (or -1) for two"
            )
        same.append(label in _TRUE)
    return ListedPairs(paths, np.array(same, bool), None)


def _by_two_lines(path: Path, root: Path, rows: Sequence[Row]) -> ListedPairs:
    paths, same = list[Path](), list[bool]()
    known: dict[str, Path] = {}
    for (number, first), (_, second) in zip(rows[0::2], rows[1::2], strict=False):
        alike = len(first) == len(second) == 2 and first[1] == second[1] and first[1].isdigit()
        if not alike:
            raise UserError(
                f"{path}:{number}: expected two lines `path label` with the same label, 0 for two "
                "identities and another number for one"
            )
        paths += [_file(fields[0], root, known, f"{path}:{number}") for fields in (first, second)]
        same.append(int(first[1]) != 0)
    if len(rows) % 2:
        raise UserError(f"{path}:{rows[-1][0]}: the second image of the last pair is missing")
    return ListedPairs(paths, np.array(same, bool), None)


def _file(name: str, root: Path, known: dict[str, Path], where: str) -> Path:
    if name not in known:
        known[name] = root / name
        if not known[name].is_file():
            raise UserError(
                f"{where}: {known[name]} is not there; give the folder that the paths are relative "
                "to as root"
            )
    return known[name]
