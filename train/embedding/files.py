"""Images in files of their own: those of a folder and below it, and files that are named one by
one."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.folder import files_in
from manyfaces.data.sources.left_out import LeftOut
from manyfaces.data.sources.source import FileAt, Place
from manyfaces.data.sources.text_column import TextColumn
from manyfaces.data.sources.url_at import UrlAt
from manyfaces.train.embedding.source import PlacedImages, printable


class FileImages(PlacedImages):
    """Image files below a folder, by their paths relative to it."""

    in_files = True
    reads_side_by_side = True

    def __init__(self, folder: str) -> None:
        self.folder, self.where = folder, printable(folder)
        self._names, self._listing = TextColumn(), hashlib.sha256()

    def add(self, name: str, size: int) -> None:
        """Add a file of so many bytes."""
        self._names.append(name)
        self._listing.update(f"{name} {size}\n".encode(errors="surrogateescape"))

    @property
    def digest(self) -> str:  # type: ignore[override]  # files are added
        return self._listing.hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def place(self, row: int) -> Place:
        return FileAt(str(Path(self.folder) / self.key(row)))

    def key(self, row: int) -> str:
        return self._names[row]

    def identity(self, row: int) -> str | None:
        """The first folder that the image lies in, as `manyfaces data convert` has it."""
        identity, slash, _ = self.key(row).partition("/")
        return identity if slash else None


class FolderImages(FileImages):
    """All images in a folder and below it. Raises `UserError` for a folder without images."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        left_out = LeftOut()
        for name, size, reason in files_in(path):
            if reason is None:
                self.add(name, size)
            else:
                left_out.add(name, reason)
        if not len(self):
            held = f"; it holds {left_out}" if len(left_out) else ""
            raise UserError(f"{path}: no images found in it or below it{held}")
        if len(left_out):
            self.notes = [f"{path}: no images and left out: {left_out}"]


class UrlImages(FileImages):
    """Image files below a URL, whose credentials are kept out of what is written."""

    def place(self, row: int) -> Place:
        return UrlAt(f"{self.folder}/{self.key(row)}")


def named_files(paths: Iterable[Path]) -> list[FileImages]:
    """Image files that are named one by one, together by their folders, in the order in which the
    folders come first. Raises `UserError` for a file that is named twice."""
    of_folder: dict[str, FileImages] = {}
    seen: set[str] = set()
    for path in paths:
        if str(path) in seen:
            raise UserError(f"{path}: is named twice; name it once")
        seen.add(str(path))
        folder = str(path.parent)
        of_folder.setdefault(folder, FileImages(folder)).add(path.name, path.stat().st_size)
    return list(of_folder.values())
