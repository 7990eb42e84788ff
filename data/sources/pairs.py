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

from manyfaces.configs import rng
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import Dataset, write_atomic
from manyfaces.data.store.mapped import Store

_SAME, _OTHER = 21, 22  # streams of the counter

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
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which a verification set never needs"
        )


@dataclass(frozen=True)
class Pairs:
    name: str
    blobs: list[NDArray[np.uint8]]
    """2N encoded images."""
    same: NDArray[np.bool_]
    """[N]: whether both images of the pair show one identity."""


def read_bin(path: str | Path) -> Pairs:
    """Read a `.bin`. Raises `UserError` for a file that is none, or that asks to run something."""
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
    write_atomic(path, pickle.dumps((blobs, same), protocol=2))


def draw_pairs(
    dataset: Dataset, count: int, seed: int, folds: int = 10
) -> tuple[list[bytes], list[bool]]:
    """`count` pairs, half of one identity and half of two, alternating by fold as LFW's do.

    Raises `UserError` where none can be made.
    """
    order = np.argsort(dataset.identity_N, kind="stable")
    identities, first, images = np.unique(
        dataset.identity_N[order], return_index=True, return_counts=True
    )
    several = np.flatnonzero(images >= 2)
    if len(several) == 0 or len(identities) < 2:
        raise UserError(
            f"{dataset.path}: verification pairs need an identity with two images and a second "
            "identity"
        )
    half = count // 2
    u = rng.uniform(rng.key(seed, _SAME), np.arange(3 * half, dtype=np.uint64)).reshape(3, half)
    who = several[(u[0] * len(several)).astype(int)]
    one = (u[1] * images[who]).astype(int)
    two = (one + 1 + (u[2] * (images[who] - 1)).astype(int)) % images[who]
    positive = np.stack([order[first[who] + one], order[first[who] + two]], 1)
    u = rng.uniform(rng.key(seed, _OTHER), np.arange(4 * half, dtype=np.uint64)).reshape(4, half)
    left = (u[0] * len(identities)).astype(int)
    right = (left + 1 + (u[1] * (len(identities) - 1)).astype(int)) % len(identities)
    negative = np.stack(
        [order[first[w] + (v * images[w]).astype(int)] for w, v in ((left, u[2]), (right, u[3]))], 1
    )
    parts = [part for f in range(folds) for part in (positive[f::folds], negative[f::folds])]
    same = [
        bool(s)
        for f in range(folds)
        for s in [True] * len(positive[f::folds]) + [False] * len(negative[f::folds])
    ]
    return [blob.tobytes() for blob in Store(dataset).read(np.concatenate(parts).reshape(-1))], same
