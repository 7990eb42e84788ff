"""What a source of images to embed is: images by their row, each with a key and perhaps an
identity."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

from manyfaces.configs.redact import redact
from manyfaces.data.sources.source import Dropped, Place
from manyfaces.train.evaluation.result import Encoded

_THREADS = 8
"""Reads of files of their own at a time, as one may wait for a disk or a store."""


class Image(NamedTuple):
    """One image as its source has it."""

    row: int
    """Its number in the source."""
    key: str
    """Its name, which no other image of the source has."""
    identity: str | None
    """Name or number of the identity; None where the source does not tell."""
    blob: Encoded | None
    """Its encoded bytes; None where they cannot be had."""
    fault: str = ""
    """Why they cannot be had."""


class ImageSource(ABC):
    """The images of one path or URL that a person has named. Rows count from 0."""

    where: str
    """The path or URL, without credentials."""
    in_files: bool = False
    """Whether each image is a file of its own, at `where/key`."""
    digest: str
    """Changes when the images do, as far as that is quick to tell."""
    notes: Sequence[str] = ()
    """What a person should know about how the source was read."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def read(self, rows: range) -> list[Image]:
        """The images of these rows, in their order; those that are left out on purpose, as what is
        forgotten, are missing. Raises `UserError` and `OSError` for a disk or a store that fails,
        whose images may be read another time."""

    def close(self) -> None:  # noqa: B027 - most sources fetch nothing
        """End what is fetched in the background."""


class PlacedImages(ImageSource):
    """Images of which each has a place. Subclasses say which, and what they are called."""

    reads_side_by_side = False
    """Whether several places are better read at a time: they lie in files of their own."""

    @abstractmethod
    def place(self, row: int) -> Place:
        """Where the bytes of one image are."""

    @abstractmethod
    def key(self, row: int) -> str:
        """The key of one image."""

    @abstractmethod
    def identity(self, row: int) -> str | None:
        """The identity of one image."""

    def read(self, rows: range) -> list[Image]:
        if self.reads_side_by_side:
            return list(self._pool.map(self._read, rows))
        return [self._read(row) for row in rows]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "images")

    def _read(self, row: int) -> Image:
        key, identity = printable(self.key(row)), self.identity(row)
        named = None if identity is None else printable(identity)
        try:
            return Image(row, key, named, self.place(row).read())
        except Dropped as reason:
            return Image(row, key, named, None, str(reason))


def printable(name: str) -> str:
    """The name as UTF-8 can hold it: bytes of a file's name that are none are shown as `\\xe9`."""
    return redact(name.encode(errors="surrogateescape").decode(errors="backslashreplace"))
