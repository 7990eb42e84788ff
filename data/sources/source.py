"""Sources in: what a path holds, as columns (identity of each image, where its bytes are), whatever
the format.

A source costs tens of bytes an image: texts stand in `Texts`, numbers in arrays, and a `Place` is
made of a row when it is read.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.write import Dropped
from manyfaces.data.sources import parquet, recordio, zips
from manyfaces.data.sources.bulk import Texts

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
RECOGNISED = (
    "recognised: a folder of identity folders, a text list (`path<TAB>label` lines), a .zip of "
    "identity folders or a folder of them, "
    "an MXNet .rec (with its .idx), a .parquet file or a folder of them"
)


class Place(Protocol):
    """Where one image's bytes are; small, and sent to the process that reads them. Its `str` is for
    people."""

    def read(self) -> bytes:
        """The bytes. Raises `Dropped`."""
        ...


class FileAt(NamedTuple):
    """An image in a file of its own."""

    path: str

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise Dropped(f"cannot be read: {error.strerror}") from error


class Source(ABC):
    """The images of one path given by a user."""

    kind: str
    path: Path
    identities: list[str]
    label_N: NDArray[np.int32]
    """The identity of each image, as a row of `identities`."""
    digest: str
    """Changes when the source does; cheap, so not of all bytes."""
    in_sequence = True
    """Whether ascending rows lie one after the other on disk, so that they are best read in this
    order."""
    group_N: NDArray[np.int32] | None = None
    """Rows that can only be read together, as those of a parquet row group; None where each stands
    alone."""
    notes: Sequence[str] = ()
    """What a person should know about how it was read."""

    @abstractmethod
    def place(self, row: int) -> Place: ...

    @abstractmethod
    def name(self, row: int) -> str:
        """The image's name in the source: a relative path, a record's key. Landmark files use
        it."""


class Folder(Source):
    """`path/<identity>/**/*.jpg`. Raises `UserError` for no identity folders, and for one without
    images."""

    kind, in_sequence = "folder", False

    def __init__(self, path: Path) -> None:
        folders = sorted(p for p in path.iterdir() if p.is_dir())
        if not folders:
            raise UserError(
                f"{path}: no identity folders in it; expected SRC/<identity>/*.jpg. {RECOGNISED}"
            )
        self.path, self.identities, self._names, labels, empty = (
            path,
            [f.name for f in folders],
            Texts(),
            array("i"),
            [],
        )
        listing = hashlib.sha256()
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
            shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
            raise UserError(
                f"{path}: no images in {shown}; remove the empty folders or fill them "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.label_N, self.digest = np.array(labels, np.int32), listing.hexdigest()

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.path / self.name(row)))

    def name(self, row: int) -> str:
        return self._names[row]


class Listed(Source):
    """A text file of lines `path<TAB>label`, or with one space between; paths are relative to the
    list's folder or to `root`.

    Raises `UserError` naming file:line for a line that is none, and where not one of the images is
    there.
    """

    kind, in_sequence = "list", False

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path, self.root, self._names, labels = path, root or path.parent, Texts(), array("i")
        codes: dict[str, int] = {}
        listing = hashlib.sha256(str(self.root).encode(errors="surrogateescape"))
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                listing.update(line.encode(errors="surrogateescape"))
                if not (line := line.rstrip("\r\n")).strip():
                    continue
                name, _, label = line.partition("\t") if "\t" in line else line.rpartition(" ")
                if not name.strip() or not label.strip() or "\t" in label:
                    raise UserError(
                        f"{path}:{number}: expected `path<TAB>label` or `path label`, got "
                        f"{line[:80]!r}; mend the line or remove it"
                    )
                self._names.append(name.strip())
                labels.append(codes.setdefault(label.strip(), len(codes)))
        if not labels:
            raise UserError(f"{path}: no lines in it; expected `path<TAB>label`")
        if not any(Path(self.place(row).path).exists() for row in range(len(labels))):
            raise UserError(
                f"{path}: not one of its {len(labels):,} images is there (the first: "
                f"{self.place(0)}); set --root FOLDER"
            )
        self.identities, self.label_N, self.digest = (
            list(codes),
            np.array(labels, np.int32),
            listing.hexdigest(),
        )

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.root / self.name(row)))

    def name(self, row: int) -> str:
        return self._names[row]


class Zips(Source):
    """Archives of `**/<identity>/*.jpg`, as WebFace260M is shipped; one identity may be in several
    of them."""

    kind = "zip"

    def __init__(self, path: Path, archives: list[Path]) -> None:
        self.path, self._archives, self._names = path, [str(a) for a in archives], Texts()
        columns = {
            "archive": array("i"),
            "offset": array("q"),
            "size": array("q"),
            "method": array("i"),
            "crc": array("q"),
        }
        codes: dict[str, int] = {}
        labels, listing = array("i"), hashlib.sha256()
        for number, archive in enumerate(archives):
            for entry in zips.entries(archive):
                folders, _, file = entry.name.rpartition("/")
                if Path(file).suffix.lower() not in IMAGE_SUFFIXES or entry.name.startswith(
                    "__MACOSX/"
                ):
                    continue
                if not folders:
                    raise UserError(
                        f"{archive}: {file} lies in no folder; expected <identity>/{file}, the "
                        "identity being the last folder"
                    )
                self._names.append(entry.name)
                labels.append(codes.setdefault(folders.rpartition("/")[2], len(codes)))
                for column, value in zip(columns.values(), (number, *entry[1:]), strict=True):
                    column.append(value)
                listing.update(f"{entry}\n".encode(errors="surrogateescape"))
        if not labels:
            raise UserError(
                f"{path}: no images in it; expected <identity>/*.jpg inside "
                f"({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self._columns = columns
        self.identities, self.label_N, self.digest = (
            list(codes),
            np.array(labels, np.int32),
            listing.hexdigest(),
        )

    def place(self, row: int) -> zips.MemberAt:
        archive, *rest = (column[row] for column in self._columns.values())
        return zips.MemberAt(self._archives[archive], zips.Entry(self.name(row), *rest))

    def name(self, row: int) -> str:
        return self._names[row]


class Records(Source):
    """An MXNet .rec. Identities are named by their labels, images by their keys."""

    kind = "rec"

    def __init__(self, path: Path, rec: Path) -> None:
        found = recordio.read_records(rec)
        labels, codes_N = np.unique(found.label_N, return_inverse=True)
        self.path, self._rec, self._key_N, self._offset_N, self.notes = (
            path,
            str(rec),
            found.key_N,
            found.offset_N,
            found.notes,
        )
        self.identities, self.label_N = (
            [str(label) for label in labels.tolist()],
            codes_N.astype(np.int32),
        )
        self.digest = hashlib.sha256(
            b"".join(c.tobytes() for c in (found.key_N, found.offset_N, found.label_N))
        ).hexdigest()

    def place(self, row: int) -> recordio.RecordAt:
        return recordio.RecordAt(self._rec, int(self._offset_N[row]), int(self._key_N[row]))

    def name(self, row: int) -> str:
        return str(self._key_N[row])


class Parquet(Source):
    """Parquet files. Images are named by their path in the dataset they come from, else by file and
    row."""

    kind = "parquet"

    def __init__(
        self,
        path: Path,
        files: list[Path],
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        found = parquet.read_rows(files, image_column, label_column)
        self.path, self._found, self.identities = path, found, found.identities
        self.label_N, self.group_N = found.label_N, found.group_N
        listing = hashlib.sha256(
            "\n".join(f"{f.name} {f.stat().st_size}" for f in files).encode(
                errors="surrogateescape"
            )
        )
        listing.update(found.label_N.tobytes() + found.image_column.encode())
        self.digest = listing.hexdigest()

    def place(self, row: int) -> parquet.RowAt:
        group = int(self._found.group_N[row])
        file, number = self._found.place_G[group]
        return parquet.RowAt(
            str(file), number, row - int(self._found.first_G[group]), self._found.image_column
        )

    def name(self, row: int) -> str:
        if self._found.names[row]:
            return self._found.names[row]
        place = self.place(row)
        return f"{Path(place.path).stem}/{place.group}/{place.row}"


def recognise(
    path: Path,
    root: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """The source that a path holds. Raises `UserError` for one that is not there, of no known kind,
    of several kinds, or broken."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {RECOGNISED}")
    if path.is_dir():
        found = {suffix: _with_suffix(path, suffix) for suffix in (".rec", ".zip", ".parquet")}
        if (
            not any(found.values()) and (path / "data").is_dir()
        ):  # as a Hugging Face repository holds them
            found[".parquet"] = _with_suffix(path / "data", ".parquet")
        kinds = [suffix for suffix, files in found.items() if files]
        if len(kinds) > 1 or len(found[".rec"]) > 1 or (kinds and _has_faces(path)):
            names = [p.name for k in kinds for p in found[k][:3]] + [
                "identity folders"
            ] * _has_faces(path)
            raise UserError(
                f"{path}: holds several sources ({', '.join(names)}); name one of them, or each"
            )
        if not kinds and _with_suffix(path, ".tar"):
            raise UserError(
                f"{path}: holds .tar shards, which need no conversion; run `manyfaces data index "
                f"{path}`"
            )
        kind, files = (kinds[0], found[kinds[0]]) if kinds else ("", [])
    else:
        kind, files = path.suffix.lower(), [path]
    if kind == ".rec":
        return Records(path, files[0])
    if kind == ".zip":
        return Zips(path, files)
    if kind == ".parquet":
        return Parquet(path, files, image_column, label_column)
    if path.is_dir():
        return Folder(path)
    with path.open("rb") as file:
        if b"\0" in file.read(4096) or kind == ".tar":
            raise UserError(f"{path}: not a source; {RECOGNISED}")
    return Listed(path, root)


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _has_faces(folder: Path) -> bool:
    """Whether one of its first folders holds images."""
    folders = islice((p for p in folder.iterdir() if p.is_dir()), 10)
    return any(p.suffix.lower() in IMAGE_SUFFIXES for one in folders for p in one.iterdir())


def _with_suffix(folder: Path, suffix: str) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == suffix and p.is_file())
