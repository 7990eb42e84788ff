"""What a source is: the images that a path holds, as columns (the identity of each image, and where
its bytes are), whatever the format.

A kind of source is one module of this folder with one subclass of `Source`; nothing else lists it.
A source costs tens of bytes an image: names stand in a `TextColumn`, numbers in arrays, and a
`Place` is made of a row when the row is read.
"""

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
ValueType = type[Path] | type[str] | type[int] | type[float]


class Dropped(Exception):
    """Raised where one image cannot be used; the message says why, in the same words for each such
    image."""


class Place(Protocol):
    """Where one image's bytes are. It is small, and is sent to the process that reads the bytes;
    its `str` is for people."""

    def read(self) -> bytes:
        """Read the bytes. Raises `Dropped`."""
        ...


class FileAt(NamedTuple):
    """The place of an image in a file of its own."""

    path: str

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise Dropped(f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Option:
    """An option that a kind of source takes; the command line offers `image_column` as
    `--image-column`."""

    name: str
    """The keyword of the class's constructor."""
    type: ValueType
    help: str
    metavar: str | None = None


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
    """List the file itself, or the files right in the folder, whose name ends in `suffix`."""
    files = path.iterdir() if path.is_dir() else [path]
    return sorted(file for file in files if file.suffix.lower() == suffix and file.is_file())


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
