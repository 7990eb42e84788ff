"""Zip archives of identity folders, as WebFace260M is shipped."""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.file_names import (
    IMAGE_SUFFIXES,
    reason_against,
    split_of_folder,
    wanted_names,
    wanted_splits,
)
from manyfaces.data.sources.source import SPLIT, Claim, Source, files_with_suffix
from manyfaces.data.sources.text_column import TextColumn
from manyfaces.data.sources.zip_directory import Entry, MemberAt, entries


class Zips(Source):
    """The images of archives of `**/<identity>/*.jpg`; one identity may be in several of them.

    Raises `UserError` for a broken archive, for images in no folder, and where members contradict
    each other: a name that stands twice, identity folders at several levels or under several
    folders of one archive, several splits. With `needs_labels` false, and no split named, all
    images are taken, whatever the folders: an image is of the folder right above it, or of "".
    """

    kind, described = "zip", "a .zip of identity folders or a folder of them"
    precedence, may_lack_labels = 20, True
    options = (SPLIT,)

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        files = files_with_suffix(path, ".zip")
        return [Claim(files)] if files else []

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        split: str | None = None,
        *,
        needs_labels: bool = True,
    ) -> None:
        self.path, self._archives = path, [str(file) for file in files]
        self._names = TextColumn()
        self._archive_N, self._offset_N, self._size_N = array("i"), array("q"), array("q")
        self._method_N, self._crc_N = array("i"), array("q")
        labels, codes, listing = array("i"), dict[str, int](), hashlib.sha256()
        folders = _Folders(path, split) if needs_labels or split is not None else _AnyFolders()
        for number, archive in enumerate(files):
            folders.begin(archive)
            for entry in entries(archive):
                reason = reason_against(entry.name) or folders.reason_against(entry.name)
                if reason is not None:
                    self.left_out.add(f"{archive.name}:{entry.name}", reason)
                    continue
                self._append(number, entry)
                identity = "/".join(entry.name.split("/")[-2:-1])
                labels.append(codes.setdefault(identity, len(codes)))
                listing.update(f"{entry}\n".encode(errors="surrogateescape"))
        folders.require_split()
        if not labels:
            held = f"; it holds {self.left_out}" if len(self.left_out) else ""
            raise UserError(
                f"{path}: no images in it; expected <identity>/*.jpg inside "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}){held}"
            )
        self._require_once()
        self.identities, self.label_N = list(codes), np.array(labels, np.int32)
        self.digest = listing.hexdigest()

    def _append(self, archive: int, entry: Entry) -> None:
        self._names.append(entry.name)
        self._archive_N.append(archive)
        self._offset_N.append(entry.offset)
        self._size_N.append(entry.size)
        self._method_N.append(entry.method)
        self._crc_N.append(entry.crc)

    def _require_once(self) -> None:
        """Raise `UserError` for a member that stands twice in one archive."""
        twice = self._names.repeated(np.array(self._archive_N))
        if twice is not None:
            raise UserError(
                f"{self._archives[self._archive_N[twice[1]]]}: {self.name(twice[1])} stands twice "
                "in it; unpack it and pack it again"
            )

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

    def key(self, row: int) -> str:
        """Several archives may have members of one name."""
        archive = f"{Path(self._archives[self._archive_N[row]]).name}:"
        return f"{archive if len(self._archives) > 1 else ''}{self.name(row)}"


class _AnyFolders:
    """Folders of archives that need not agree."""

    def begin(self, archive: Path) -> None:
        pass

    def reason_against(self, name: str) -> str | None:
        return None

    def require_split(self) -> None:
        pass


class _Folders(_AnyFolders):
    """The identity folders of all archives, which have to agree: the identity is the last folder of
    a name, and all are at one level."""

    def __init__(self, path: Path, wanted: str | None) -> None:
        self.path, self.wanted = path, wanted
        self.wanted_names = wanted_names(wanted)
        self.archive, self.splits = path, set[str]()
        self.parent_of: dict[str, str] = {}
        """The folder that holds each identity folder of this archive."""
        self.last = ("", "")
        """The last folder that was seen, and its split."""
        self.first = ""
        """The first identity folder, whose level is that of all."""

    def begin(self, archive: Path) -> None:
        """Go on with the next archive."""
        self.archive, self.last, self.parent_of = archive, ("", ""), {}

    def reason_against(self, name: str) -> str | None:
        """Say why an image is not taken: of a split that is not wanted. Raises `UserError`."""
        folder, _, file = name.rpartition("/")
        if not folder:
            raise UserError(
                f"{self.archive}: {file} lies in no folder; expected <identity>/{file}, the "
                "identity being the last folder"
            )
        if folder != self.last[0]:
            self.last = folder, self._split(folder)
        split = self.last[1]
        return None if self._wants(split) else f"of the split {split or 'without a name'}"

    def require_split(self) -> None:
        """Raise `UserError` where there are several splits and none was named, or the one that was
        named is not there."""
        if self.splits:
            wanted_splits(self.path, self.splits, self.wanted)

    def _wants(self, split: str) -> bool:
        return not self.wanted_names or split in self.wanted_names

    def _split(self, folder: str) -> str:
        """Check an identity folder and return its split."""
        *above, identity = folder.split("/")
        split = next(filter(None, map(split_of_folder, above)), "")
        self.splits.add(split)
        if self.wanted is None:
            self.require_split()
        if not self._wants(split):
            return split
        self.first = self.first or folder
        if self.first.count("/") != folder.count("/"):
            raise UserError(
                f"{self.archive}: images in {self.first} and in {folder}, at other levels; which "
                "folders are the identities is not clear: unpack it, and convert the folder whose "
                "folders are the people"
            )
        parent = "/".join(above)
        known = self.parent_of.setdefault(identity, parent)
        if known != parent:
            raise UserError(
                f"{self.archive}: a folder {identity} in {known} and in {parent}; the identity "
                "would be this last folder: unpack it, and convert the folder whose folders are "
                "the people"
            )
        return split
