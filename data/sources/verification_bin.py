"""Verification sets in InsightFace's `.bin` layout: a pickle of (2N encoded images, N booleans),
pair i being images 2i and 2i + 1.

They come from the web, so nothing in them may run: the unpickler knows bytes and numpy arrays only.
"""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic

# What cv2.imencode and Python 2 leave in such files; numpy moved its modules in 2.0.
_ALLOWED = {
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
}
_ALLOWED |= {
    (f"numpy.{core}.multiarray", name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
}
_ALLOWED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}


class _Unpickler(pickle.Unpickler):
    """An unpickler that refuses all but bytes and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which a verification set never needs"
        )


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
        try:
            content = _Unpickler(io.BytesIO(data)).load()
        except UnicodeDecodeError:  # written by Python 2
            content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        bins, same = content
        blobs = [
            np.frombuffer(b, np.uint8)
            if isinstance(b, bytes)
            else np.asarray(b, np.uint8).reshape(-1)
            for b in bins
        ]
        labels = np.array([bool(s) for s in same])
    except Exception as error:  # a malformed pickle raises nearly anything
        raise UserError(f"{path}: not a verification set: {error}") from error
    if len(blobs) != 2 * len(labels) or len(labels) == 0:
        raise UserError(f"{path}: {len(blobs)} images for {len(labels)} pairs; expected two a pair")
    return Pairs(path.stem, blobs, labels)


def write_bin(path: Path, blobs: list[bytes], same: list[bool]) -> None:
    """Write 2N encoded images and N booleans as `read_bin` reads them."""
    write_atomic(path, pickle.dumps((blobs, same), protocol=2))
