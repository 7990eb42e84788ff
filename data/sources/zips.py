"""Zip archives of identity folders, as WebFace260M is shipped."""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.source import IMAGE_SUFFIXES, Claim, Source, files_with_suffix
from manyfaces.data.sources.text_column import TextColumn
from manyfaces.data.sources.zip_directory import Entry, MemberAt, entries


class Zips(Source):
    """The images of archives of `**/<identity>/*.jpg`; one identity may be in several of them.
    Raises `UserError` for a broken archive, and for images in no folder."""

    kind, described = "zip", "a .zip of identity folders or a folder of them"
    precedence = 20

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        files = files_with_suffix(path, ".zip")
        return [Claim(files)] if files else []

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self._archives = path, [str(file) for file in files]
        self._names = TextColumn()
        self._archive_N, self._offset_N, self._size_N = array("i"), array("q"), array("q")
        self._method_N, self._crc_N = array("i"), array("q")
        labels, codes, listing = array("i"), dict[str, int](), hashlib.sha256()
        for number, archive in enumerate(files):
            for entry in entries(archive):
                if not _is_image(entry.name):
                    continue
                self._append(number, entry)
                identity = _identity(archive, entry.name)
                labels.append(codes.setdefault(identity, len(codes)))
                listing.update(f"{entry}\n".encode(errors="surrogateescape"))
        if not labels:
            raise UserError(
                f"{path}: no images in it; expected <identity>/*.jpg inside "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.identities, self.label_N = list(codes), np.array(labels, np.int32)
        self.digest = listing.hexdigest()

    def _append(self, archive: int, entry: Entry) -> None:
        self._names.append(entry.name)
        self._archive_N.append(archive)
        self._offset_N.append(entry.offset)
        self._size_N.append(entry.size)
        self._method_N.append(entry.method)
        self._crc_N.append(entry.crc)

    def place(self, row: int) -> MemberAt:
        entry = Entry(
            self.name(row),
            self._offset_N[row],
            self._size_N[row],
            self._method_N[row],
            self._crc_N[row],
        )
        return MemberAt(self._archives[self._archive_N[row]], entry)

    def name(self, row: int) -> str:
        return self._names[row]


def _is_image(name: str) -> bool:
    suffix = Path(name.rpartition("/")[2]).suffix.lower()
    return suffix in IMAGE_SUFFIXES and not name.startswith("__MACOSX/")


def _identity(archive: Path, name: str) -> str:
    """The last folder of a member's name."""
    folders, _, file = name.rpartition("/")
    if not folders:
        raise UserError(
            f"{archive}: {file} lies in no folder; expected <identity>/{file}, the identity being "
            "the last folder"
        )
    return folders.rpartition("/")[2]
