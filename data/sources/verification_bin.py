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
from manyfaces.data.sources.inert_arrays import Array, NotInertError
from manyfaces.data.sources.inert_pickle import load

_EXPECTED = "expected a pair of lists, the encoded images and whether each two of them are one face"
_WORDS = {"1": 1, "true": 1, "0": 0, "false": 0, "-1": -1}


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
        blobs = [_image(blob, number) for number, blob in enumerate(bins)]
        labels = _labels(same)
    except NotInertError as error:
        raise UserError(f"{path}: not a verification set: {error}") from error
    if len(blobs) != 2 * len(labels) or len(labels) == 0:
        raise UserError(f"{path}: {len(blobs)} images for {len(labels)} pairs; expected two a pair")
    return Pairs(path.stem, blobs, labels)


def _lists(content: object) -> tuple[list[object], list[object]]:
    """The images and the labels."""
    if isinstance(content, Array) and content.dtype is not None:
        content = content.values()
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise NotInertError(f"it holds {_described(content)}; {_EXPECTED}")
    bins, same = (_listed(part) for part in content)
    return bins, same


def _listed(part: object) -> list[object]:
    if isinstance(part, Array) and part.dtype is not None and len(part.shape) == 1:
        return part.values()
    if not isinstance(part, tuple | list):
        raise NotInertError(f"it holds {_described(part)} in place of a list; {_EXPECTED}")
    return list(part)


def _image(blob: object, number: int) -> NDArray[np.uint8]:
    if isinstance(blob, Array):
        encoded = blob.encoded()
        if encoded is None and len(blob.shape) in (2, 3):
            raise NotInertError(
                f"image {number} is an array of pixels {blob.shape}; encode it, by "
                'cv2.imencode(".png", image)'
            )
        blob = encoded
    if not isinstance(blob, bytes | bytearray):
        raise NotInertError(f"image {number} is {_described(blob)}; {_EXPECTED}")
    return np.frombuffer(blob, np.uint8)


def _labels(same: list[object]) -> NDArray[np.bool_]:
    """Whether each pair shows one identity, bool [N]: of labels that are true and false, 1 and 0,
    or 1 and -1, as numbers or as texts. Raises `NotInertError`."""
    numbers = [_label(one) for one in same]
    kinds = set(numbers)
    if not (kinds <= {0, 1} or kinds <= {-1, 1}):
        shown = ", ".join(f"{kind:g}" for kind in sorted(kinds)[:5])
        raise NotInertError(f"the labels of its pairs are {shown}; expected 1 and 0 (or -1)")
    return np.array([number == 1 for number in numbers], bool)


def _label(same: object) -> float:
    if isinstance(same, Array) and same.dtype is not None and len(values := same.values()) == 1:
        (same,) = values
    if isinstance(same, bytes):
        same = same.decode("latin-1")
    if isinstance(same, str):
        same = _WORDS.get(same.strip().lower(), same)
    if not isinstance(same, int | float) or same != same:  # NaN is not itself
        raise NotInertError(f"the label of a pair is {_described(same)}; expected true or false")
    return float(same)


def _described(value: object) -> str:
    """What a value is, for people."""
    if isinstance(value, dict):
        keys = [k.decode("latin-1") if isinstance(k, bytes) else str(k) for k in value]
        return f"a dict with the keys {', '.join(map(repr, keys[:4]))}"
    if isinstance(value, Array):
        return f"an array of shape {value.shape}"
    if isinstance(value, str | int | float):
        return ascii(value)[:40]
    return "nothing" if value is None else f"a {type(value).__name__}"


def write_bin(path: Path, blobs: list[bytes], same: list[bool]) -> None:
    """Write 2N encoded images and N booleans as `read_bin` reads them."""
    write_atomic(path, pickle.dumps((blobs, same), protocol=2))
