"""What every protocol is: the images that it needs, and what their embeddings are worth.

A new protocol is a subclass in a file of this folder, a schema class in `configs/protocols/`, and a
test; a protocol of one's own is a subclass in any file (`kind: custom`).
"""

import hashlib
import inspect
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.train.evaluation.decoding import Encoded, as_array
from manyfaces.train.evaluation.result import Quantity, Result

T = TypeVar("T")


class Distinct(NamedTuple):
    """Images, n of them, among N of which some are the same to the byte."""

    images: list[Encoded]
    """[n]: each once."""
    first_n: NDArray[np.int64]
    """[n]: where each of them stands first among the N."""
    index_N: NDArray[np.int64]
    """[N]: which of them each of the N is."""


class Protocol(ABC):
    """What a network is evaluated by."""

    name: str = ""
    """What its result is called; set by whoever opens the protocol."""
    quantities: Sequence[Quantity]
    """Describe the scalars of its result; the first is the headline."""
    mirrored: bool = False
    """Whether an embedding is the sum of those of the image and its mirror image."""

    @abstractmethod
    def images(self) -> Sequence[Encoded]:
        """The encoded images, N of them; one that is there several times is embedded once."""

    @abstractmethod
    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        """The outcome for the embeddings of `images()`, in their order and of any length. It is the
        same on every rank."""

    def image_name(self, index: int) -> str:
        """What an image of `images()` is called, for people."""
        return f"{self.name}: image {index}"

    @cached_property
    def distinct(self) -> Distinct:
        """The images, each once."""
        images: list[Encoded] = []
        first, index = list[int](), list[int]()
        number_of: dict[bytes, int] = {}
        for place, image in enumerate(self.images()):
            digest = hashlib.blake2b(as_array(image).data, digest_size=16).digest()
            if digest not in number_of:
                number_of[digest] = len(images)
                images.append(image)
                first.append(place)
            index.append(number_of[digest])
        return Distinct(images, np.array(first, np.int64), np.array(index, np.int64))


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
