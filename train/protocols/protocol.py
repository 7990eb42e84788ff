"""What every protocol is: the images that it needs, and what their embeddings are worth.

A new protocol is a subclass in a file of this folder, a schema class in `configs/protocols/`, and a
test; a protocol of one's own is a subclass in any file (`kind: custom`).
"""

import hashlib
import inspect
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.decoding import as_array
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.result import Encoded, Quantity, Result

T = TypeVar("T")


class Picked(Sequence[Encoded]):
    """Some images of a sequence, each taken from it when it is asked for."""

    def __init__(self, images: Sequence[Encoded], rows_n: NDArray[np.int64]) -> None:
        self._images, self._rows_n = images, rows_n

    def __len__(self) -> int:
        return len(self._rows_n)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "Picked": ...
    def __getitem__(self, index: int | slice) -> "Encoded | Picked":
        if isinstance(index, slice):
            return Picked(self._images, self._rows_n[index])
        return self._images[int(self._rows_n[index])]


class Distinct(NamedTuple):
    """Images, n of them, among N of which some are the same."""

    images: Picked
    """[n]: each once."""
    first_n: NDArray[np.int64]
    """[n]: where each of them stands first among the N."""
    index_N: NDArray[np.int64]
    """[N]: which of them each of the N is."""


def _unseen(done: int, total: int) -> None:
    """Where nobody looks at the progress."""


class Protocol(ABC):
    """What a network is evaluated by."""

    name: str = ""
    """What its result is called; set by whoever opens the protocol."""
    quantities: Sequence[Quantity]
    """Describe the scalars of its result; the first is the headline."""
    flip: Flip = "none"
    """What an embedding is of: the image, or its mirror image as well."""
    reads_lazily: bool = False
    """Whether `images()` reads an image only when that is taken from it. Such images are not all
    decoded before a run begins: one that is broken is told when it is embedded."""
    source: str = ""
    """What it is the protocol of, as JSON; set by whoever opens it."""
    working: Callable[[int, int], None] = staticmethod(_unseen)
    """Called by `result`, where that takes long, with how much of its work is done and of how much
    in all; set by who evaluates. It may raise to end the work."""

    @abstractmethod
    def images(self) -> Sequence[Encoded]:
        """The encoded images, N of them; one that is there several times is embedded once. They are
        taken one by one, in order, and none is held longer than its batch."""

    def keys(self) -> Sequence[Hashable]:
        """What tells the N images apart: those of equal keys are the same image. By default it is a
        digest of their bytes; a protocol that reads images lazily gives their paths, for example,
        so that none is read to tell them apart."""
        return image_keys(self.images())

    @abstractmethod
    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        """The outcome for the embeddings of `images()`, in their order and of any length. It is the
        same on every rank."""

    def scored_result(
        self, embeddings_ND: NDArray[np.float32], scores: Mapping[str, NDArray[np.floating]]
    ) -> Result:
        """As `result`, for a protocol that reads `scores` too: the numbers that the network gives
        each image besides, [N] by name, such as `quality`; most networks give none."""
        return self.result(embeddings_ND)

    def pieces(self) -> int:
        """How many pieces of work need the network itself beside embeddings; most have none."""
        return 0

    def probe(self, embedder: Embedder, piece: int) -> NDArray[np.float64]:
        """What one of the pieces finds with the network; each is done by one rank."""
        raise NotImplementedError

    def probed_result(
        self, embeddings_ND: NDArray[np.float32], probed: Sequence[NDArray[np.float64]]
    ) -> Result:
        """As `result`, for a protocol with pieces of work: what each found, in their order."""
        return self.result(embeddings_ND)

    def image_name(self, index: int) -> str:
        """What an image of `images()` is called, for people."""
        return f"{self.name}: image {index}"

    @cached_property
    def distinct(self) -> Distinct:
        """The images, each once."""
        first, index = list[int](), list[int]()
        number_of: dict[Hashable, int] = {}
        for place, key in enumerate(self.keys()):
            number = number_of.setdefault(key, len(first))
            if number == len(first):
                first.append(place)
            index.append(number)
        first_n = np.array(first, np.int64)
        return Distinct(Picked(self.images(), first_n), first_n, np.array(index, np.int64))


def image_keys(images: Sequence[Encoded]) -> list[bytes]:
    """A digest of the bytes of each image."""
    return [hashlib.blake2b(as_array(image).data, digest_size=16).digest() for image in images]


def own_code(protocol: Protocol, work: Callable[[], T]) -> T:
    """What `work` gives, which runs the protocol's code and so perhaps a person's own; whatever
    that raises is a `UserError` of one line, with its place in the file of the protocol."""
    try:
        return work()
    except UserError:
        raise
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        file = inspect.getfile(type(protocol))
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == file
        ]
        where = f" ({file}, line {lines[-1]})" if lines else ""
        raise UserError(f"{protocol.name}: {told}{where}") from error
