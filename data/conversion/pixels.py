"""The pixels of a foreign image, whatever its format, and why one cannot be used."""

import io
import warnings
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manyfaces.data.dataset.sample import too_large, whole_jpeg
from manyfaces.data.limits import MOST_BYTES, MOST_PIXELS
from manyfaces.data.sources.source import Dropped
from manyfaces.data.stderr import MISSING_DATA, with_stderr

Pixels = NDArray[np.uint8]


def is_jpeg(blob: bytes) -> bool:
    """Say whether the bytes begin as a JPEG does; the name of a file does not matter."""
    return blob[:2] == b"\xff\xd8"


def decoded(blob: bytes) -> Pixels:
    """The pixels of an encoded image, [height, width, 3] uint8 BGR; of one with several frames the
    first. Raises `Dropped` for one that is too large, cut off or in no format that is read."""
    if too_large(blob) or _too_many_pixels(blob):
        raise Dropped(f"more than {MOST_PIXELS:,} pixels or {MOST_BYTES:,} bytes")
    if is_jpeg(blob) and not whole_jpeg(blob):
        raise Dropped("a JPEG that is cut off")
    pixels, said = with_stderr(partial(_by_opencv, blob))
    if pixels is None:
        raise Dropped("not a decodable image")
    if MISSING_DATA in said:
        raise Dropped("a JPEG with data missing: part of the image is gray")
    return np.asarray(pixels, np.uint8)


def _by_opencv(blob: bytes) -> Pixels | None:
    try:
        return cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
    except cv2.error:  # for a size that OpenCV refuses
        return None


def _too_many_pixels(blob: bytes) -> bool:
    """Whether the header of a format that `too_large` does not know says so; OpenCV decodes up to
    2^30 pixels."""
    if is_jpeg(blob):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are compared below
            with Image.open(io.BytesIO(blob)) as image:
                return image.width * image.height > MOST_PIXELS
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, EOFError, SyntaxError, NotImplementedError):  # left to OpenCV
        return False
