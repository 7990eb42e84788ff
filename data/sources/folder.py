"""A folder of identity folders: `path/<identity>/**/*.jpg`."""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.source import IMAGE_SUFFIXES, Claim, FileAt, Source, recognised
from manyfaces.data.sources.text_column import TextColumn

_FOLDERS_LOOKED_INTO = 10
_FOLDERS_NAMED = 5


class Folder(Source):
    """The images of a folder of identity folders. Raises `UserError` for no identity folders, and
    for one without images."""

    kind, described = "folder", "a folder of identity folders"
    precedence, in_sequence = 60, False

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        if not path.is_dir():
            return []
        return [Claim([path], "identity folders", certain=_has_images(path))]

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        folders = sorted(p for p in path.iterdir() if p.is_dir())
        if not folders:
            raise UserError(
                f"{path}: no identity folders in it; expected SRC/<identity>/*.jpg. {recognised()}"
            )
        self.path, self._names = path, TextColumn()
        self.identities = [folder.name for folder in folders]
        labels, listing, empty = array("i"), hashlib.sha256(), []
        for label, folder in enumerate(folders):
            before = len(labels)
            for file in sorted(_images(folder)):
                name = str(file.relative_to(path))
                self._names.append(name)
                labels.append(label)
                listing.update(f"{name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
            if len(labels) == before:
                empty.append(folder.name)
        if empty:
            raise UserError(
                f"{path}: no images in {_shortened(empty)}; remove the empty folders or fill them "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.label_N, self.digest = np.array(labels, np.int32), listing.hexdigest()

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.path / self.name(row)))

    def name(self, row: int) -> str:
        return self._names[row]


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _has_images(folder: Path) -> bool:
    """Whether one of its first folders holds images."""
    folders = islice((p for p in folder.iterdir() if p.is_dir()), _FOLDERS_LOOKED_INTO)
    # `glob`, because it passes over a folder that may not be read, where `iterdir` raises.
    return any(p.suffix.lower() in IMAGE_SUFFIXES for one in folders for p in one.glob("*"))


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:_FOLDERS_NAMED])
    more = len(names) - _FOLDERS_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
