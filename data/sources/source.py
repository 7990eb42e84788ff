"""What a source is: the images that a path holds, as columns (the identity of each image, and where
its bytes are), whatever the format.

A kind of source is one module of this folder with one subclass of `Source`; nothing else lists it.
A source costs tens of bytes an image: names stand in a `TextColumn`, numbers in arrays, and a
`Place` is made of a row when the row is read.
"""

import errno
import importlib
import inspect
import pkgutil
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.file_names import is_system_folder
from manyfaces.data.sources.left_out import LeftOut

_DEEPEST, _FOLDERS_LOOKED_INTO = 3, 10
_OF_THE_FILE = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    )
)
"""What is wrong with one file or its name; every other error is the disk's or the system's."""
TOO_MANY_BYTES = f"more than {MOST_BYTES:,} bytes"
ValueType = type[Path] | type[str] | type[int] | type[float]


class Dropped(Exception):
    """Raised where one image cannot be used; the message says why, in the same words for each such
    image."""


class Place(Protocol):
    """Where one image's bytes are. It is small, and is sent to the process that reads the bytes;
    its `str` is for people."""

    def read(self) -> bytes:
        """Read the bytes. Raises `Dropped` for an image that will never be one, and `OSError` for a
        disk that fails, whose images may be read another time."""
        ...


class FileAt(NamedTuple):
    """The place of an image in a file of its own."""

    path: str

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        try:
            facts = Path(self.path).stat()
            if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for ever
                raise Dropped("no file but a folder, a pipe or a device")
            if facts.st_size > MOST_BYTES:
                raise Dropped(TOO_MANY_BYTES)
            return Path(self.path).read_bytes()
        except OSError as error:
            if error.errno not in _OF_THE_FILE:
                error.filename = self.path
                raise
            raise Dropped(f"cannot be read: {error.strerror}") from error
        except ValueError as error:  # a zero byte in the name
            raise Dropped("cannot be read: no file can have this name") from error


@dataclass(frozen=True)
class Option:
    """An option that a kind of source takes; the command line offers `image_column` as
    `--image-column`."""

    name: str
    """The keyword of the class's constructor."""
    type: ValueType
    help: str
    metavar: str | None = None


SPLIT = Option(
    "split",
    str,
    "split of a zip or of parquet files that hold several, as train or train+validation",
    "NAME",
)


class Claim(NamedTuple):
    """A source of one kind that a path holds."""

    files: Sequence[Path]
    """What the source is read from."""
    shown: str = ""
    """What people are told is there; the names of the files where this is empty."""
    certain: bool = True
    """False: the path is taken for this kind only where it is certainly of no other kind."""

    def names(self) -> list[str]:
        """What the claim is called in messages."""
        return [self.shown] if self.shown else [file.name for file in self.files]


class Source(ABC):
    """The images of one path that a user has given."""

    kind: ClassVar[str]
    """The word for it in reports."""
    described: ClassVar[str]
    """How messages describe what is recognised: `a folder of identity folders`."""
    options: ClassVar[Sequence[Option]] = ()
    """The keywords that the constructor takes beyond `path` and `files`."""
    precedence: ClassVar[int] = 40
    """Kinds with lower numbers are asked first. It decides between claims that are not certain, and
    the order in messages."""
    in_sequence: ClassVar[bool] = True
    """Whether ascending rows lie one after the other on disk, so that they are best read in this
    order."""
    may_lack_labels: ClassVar[bool] = False
    """Whether the constructor takes `needs_labels=False`, for uses that need no identities: an
    image without a label is then of the identity ""."""
    part_name: ClassVar[re.Pattern[str] | None] = None
    """How the name (without its suffix) of each of several files looks that one run of a program
    wrote, its group `run` being what they share: named one by one, they are one source. None where
    each file that is named is a source of its own."""

    path: Path
    identities: list[str]
    label_N: NDArray[np.int32]
    """The identity of each image, as a row of `identities`."""
    digest: str
    """Changes when the source does; it is cheap, so it is not a digest of all bytes."""
    group_N: NDArray[np.int32] | None = None
    """The group of each row, where rows can only be read together, as those of a parquet row group;
    None where each row stands alone."""
    notes: Sequence[str] = ()
    """What a person should know about how the source was read."""
    companions: Sequence[Path] = ()
    """Files beside those of the claim that were read with them."""

    @cached_property
    def left_out(self) -> LeftOut:
        """What the path holds and the source does not give, with the reason why."""
        return LeftOut()

    @classmethod
    @abstractmethod
    def claims(cls, path: Path) -> list[Claim]:
        """Find the sources of this kind that an existing path holds, without reading much. More
        than one is more than a source, and is refused."""

    @abstractmethod
    def __init__(self, path: Path, files: Sequence[Path], **options: Any) -> None:
        """Read the columns of the source at `path`; `files` are those of the claim. Raises
        `UserError`."""

    @abstractmethod
    def place(self, row: int) -> Place:
        """Say where the bytes of one image are."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Name the image as the source does: by a relative path, a record's key. Landmark files use
        this name."""

    def key(self, row: int) -> str:
        """A name that no other image of the source has."""
        return self.name(row)


def source_kinds() -> list[type[Source]]:
    """All kinds of source, in the order of their precedence: those in the modules of this folder,
    and those that a program has defined besides."""
    _import_folder()
    kinds = [kind for kind in _subclasses() if not inspect.isabstract(kind)]
    return sorted(kinds, key=lambda kind: (kind.precedence, kind.kind))


def recognised() -> str:
    """Describe for people what is recognised, from the most general kind to the most particular."""
    return "recognised: " + ", ".join(kind.described for kind in reversed(source_kinds()))


def files_with_suffix(path: Path, suffix: str) -> list[Path]:
    """List the file itself, or the files right in the folder, whose name ends in `suffix`; hidden
    ones are left out, as macOS makes a `._faces.zip` beside `faces.zip`."""
    if not path.is_dir():
        return [path] if path.suffix.lower() == suffix and path.is_file() else []
    files = (file for file in path.iterdir() if not is_system_folder(file.name))
    return sorted(file for file in files if file.suffix.lower() == suffix and file.is_file())


def files_below(path: Path, suffix: str) -> list[Path]:
    """List the file itself, or the files in the folder and at most three folders below it, whose
    name ends in `suffix`. Folders are searched only where one of the first of them has such files:
    those of people are millions."""
    if not path.is_dir():
        return files_with_suffix(path, suffix)
    levels = [("*/" * depth) + "*" for depth in range(_DEEPEST + 1)]
    if not any(_first_folders(path, suffix, depth=0)):
        return []
    found = (file for level in levels for file in path.glob(level))
    return sorted(
        file
        for file in found
        if file.suffix.lower() == suffix
        and not any(map(is_system_folder, file.relative_to(path).parts))
        and file.is_file()
    )


def _first_folders(path: Path, suffix: str, depth: int) -> Iterator[Path]:
    """The files right in a folder and in the first of the folders below it."""
    yield from files_with_suffix(path, suffix)
    if depth < _DEEPEST:
        folders = (p for p in path.glob("*") if p.is_dir() and not is_system_folder(p.name))
        for folder in islice(folders, _FOLDERS_LOOKED_INTO):
            yield from _first_folders(folder, suffix, depth + 1)


@cache
def _import_folder() -> None:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def _subclasses() -> Iterator[type[Source]]:
    """All classes below `Source`, however deep."""
    found: list[type[Source]] = list(Source.__subclasses__())
    while found:
        child = found.pop()
        yield child
        found.extend(child.__subclasses__())
