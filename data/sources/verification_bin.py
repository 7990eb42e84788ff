"""Verification sets in InsightFace's `.bin` layout: a pickle of (2N encoded images, N booleans),
pair i being images 2i and 2i + 1.

They come from the web, so nothing in them may run: `inert_pickle` reads them.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.data.sources.inert_pickle import Array, NotInertError, load


@dataclass(frozen=True)
class Pairs:
    """A verification set: N pairs of images."""

    name: str
    blobs: list[NDArray[np.uint8]]
    """2N encoded images."""
    same: NDArray[np.bool_]
    """Whether both images of each pair show one identity, bool [N]."""


def read_bin(path: str | Path) -> Pairs:
    """Read a `.bin`. Raises `UserError` for a file that is no verification set, or that asks to run
    something."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a verification set (.bin)") from error
    try:
        bins, same = _lists(load(data))
        blobs = [_image(blob) for blob in bins]
        labels = np.array([_label(one) for one in same], bool)
    except NotInertError as error:
        raise UserError(f"{path}: not a verification set: {error}") from error
    if len(blobs) != 2 * len(labels) or len(labels) == 0:
        raise UserError(f"{path}: {len(blobs)} images for {len(labels)} pairs; expected two a pair")
    return Pairs(path.stem, blobs, labels)


def _lists(content: object) -> tuple[list[object], list[object]]:
    """The images and the booleans."""
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise NotInertError("it holds no pair of images and booleans")
    bins, same = content
    if isinstance(same, Array):
        same = same.values().tolist()
    if not isinstance(bins, tuple | list) or not isinstance(same, tuple | list):
        raise NotInertError("it holds no lists of images and booleans")
    return list(bins), list(same)


def _image(blob: object) -> NDArray[np.uint8]:
    if isinstance(blob, Array) and blob.dtype == "u1":
        blob = blob.body
    if not isinstance(blob, bytes | bytearray):
        raise NotInertError("an image that is no bytes")
    return np.frombuffer(blob, np.uint8)


def _label(same: object) -> bool:
    if isinstance(same, Array) and len(same.body) == 1:
        return same.body != b"\0"
    if not isinstance(same, int):
        raise NotInertError("a label that is no boolean")
    return bool(same)


def write_bin(path: Path, blobs: list[bytes], same: list[bool]) -> None:
    """Write 2N encoded images and N booleans as `read_bin` reads them."""
    write_atomic(path, pickle.dumps((blobs, same), protocol=2))
