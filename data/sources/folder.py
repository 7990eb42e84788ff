"""A folder of identity folders: `path/<identity>/**/*.jpg`."""

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.file_names import (
    IMAGE_SUFFIXES,
    SYSTEM_FOLDER,
    is_system_folder,
    reason_against,
    split_of_folder,
)
from manyfaces.data.sources.source import Claim, FileAt, Source, recognised
from manyfaces.data.sources.text_column import TextColumn

_FOLDERS_LOOKED_INTO = 10
_FOLDERS_NAMED = 5


class Folder(Source):
    """The images of a folder of identity folders. Raises `UserError` for no identity folders, for
    one without images, and where the identities are evidently deeper."""

    kind, described = "folder", "a folder of identity folders"
    precedence, in_sequence = 60, False

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        if not path.is_dir():
            return []
        return [Claim([path], "identity folders", certain=_has_images(path))]

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        folders = sorted(p.name for p in path.iterdir() if p.is_dir())
        self.identities = [name for name in folders if not is_system_folder(name)]
        if not self.identities:
            raise UserError(
                f"{path}: no identity folders in it; expected SRC/<identity>/*.jpg. {recognised()}"
            )
        self.path, self._names = path, TextColumn()
        labels, listing, levels = array("i"), hashlib.sha256(), _Levels()
        code_of = {name: code for code, name in enumerate(self.identities)}
        for name, size, reason in files_in(path):
            identity, slash, rest = name.partition("/")
            if reason is None and not slash:
                reason = "in no identity folder"
            if reason is not None:
                self.left_out.add(name, reason)
                continue
            self._names.append(name)
            labels.append(code_of[identity])
            levels.add(identity, rest)
            listing.update(f"{name} {size}\n".encode(errors="surrogateescape"))
        self.label_N, self.digest = np.array(labels, np.int32), listing.hexdigest()
        self._require_images()
        self.notes = levels.notes(path, self.identities)

    def _require_images(self) -> None:
        """Raise `UserError` where an identity folder has no image."""
        has_C = np.bincount(self.label_N, minlength=len(self.identities)) > 0
        empty = [self.identities[code] for code in np.flatnonzero(~has_C).tolist()]
        if empty:
            held = f"; the source holds besides: {self.left_out}" if len(self.left_out) else ""
            raise UserError(
                f"{self.path}: no images in {_shortened(empty)}; remove the empty folders or fill "
                f"them ({', '.join(sorted(IMAGE_SUFFIXES))}){held}"
            )

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.path / self.name(row)))

    def name(self, row: int) -> str:
        return self._names[row]


class Found(NamedTuple):
    """A file below a folder."""

    name: str
    """Relative to the folder, with `/` between its parts."""
    size: int
    reason: str | None
    """Why it is taken for no image; None for one."""


def files_in(folder: Path) -> Iterator[Found]:
    """Yields all files in a folder and below it, in the order of their names, links to folders
    followed. Raises `UserError` for a folder that cannot be listed."""
    return _walk(str(folder), "", frozenset())


def _walk(folder: str, name: str, above: frozenset[tuple[int, int]]) -> Iterator[Found]:
    """As `files_in`, `name` being what the folder is called in the names of its files, and `above`
    the folders that it lies in."""
    is_system = any(map(is_system_folder, name.split("/")[:-1]))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        facts = Path(folder).stat()
    except OSError as error:
        if is_system:
            yield Found(name, 0, SYSTEM_FOLDER)
            return
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); mend its permissions or move it away"
        ) from error
    own = facts.st_dev, facts.st_ino
    if own in above:
        yield Found(name, 0, "a link to a folder that it lies in")
        return
    for entry in entries:
        inner = name + entry.name
        if entry.is_dir():
            yield from _walk(entry.path, f"{inner}/", above | {own})
            continue
        reason = reason_against(inner)
        if reason is None and not entry.is_file():
            reason = "no file but a broken link, a pipe or a device"
        yield Found(inner, entry.stat().st_size if reason is None else 0, reason)


class _Levels:
    """At which level of folders the images are, which tells identities from what holds them."""

    def __init__(self) -> None:
        self.direct = 0
        """The number of images right in an identity folder."""
        self.below: dict[str, set[str]] = {}
        """The folders with images within each identity folder; kept while no image lies right in
        one."""

    def add(self, identity: str, rest: str) -> None:
        """Take note of an image, `rest` being its name within the identity folder."""
        folder, slash, _ = rest.partition("/")
        if not slash:
            self.direct += 1
            self.below = {}
        elif not self.direct:
            self.below.setdefault(identity, set()).add(folder)

    def notes(self, path: Path, identities: Sequence[str]) -> list[str]:
        """What a person should know. Raises `UserError` for folders of splits, and for one that
        holds all the others."""
        if not self.below:
            return []
        splits = [name for name in identities if split_of_folder(name)]
        if len(splits) == len(identities):
            raise UserError(
                f"{path}: its folders are splits ({', '.join(splits)}) that hold folders; name one "
                f"of them: {path / splits[0]}"
            )
        counts = [len(folders) for folders in self.below.values()]
        first, inner = next((i, sorted(f)[0]) for i, f in self.below.items())
        if len(identities) == 1 and counts[0] > 1:
            raise UserError(
                f"{path}: its only folder is {first}, which holds {counts[0]:,} folders and would "
                f"be one identity; name {path / first} if they are the identities"
            )
        distinct = set().union(*self.below.values())
        if len(distinct) < sum(counts) or len(distinct) <= len(identities):
            return []  # the same names in several identity folders: views or sessions of a person
        return [
            f"{path}: identities are its {len(identities):,} folders, which hold "
            f"{len(distinct):,} folders ({first}/{inner} ..); if those are the people, name each "
            "of the folders above them as a source"
        ]


def _has_images(folder: Path) -> bool:
    """Whether one of its first folders holds images."""
    folders = islice(
        (p for p in folder.iterdir() if p.is_dir() and not is_system_folder(p.name)),
        _FOLDERS_LOOKED_INTO,
    )
    # `glob`, because it passes over a folder that may not be read, where `iterdir` raises.
    return any(reason_against(p.name) is None for one in folders for p in one.glob("*"))


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:_FOLDERS_NAMED])
    more = len(names) - _FOLDERS_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
