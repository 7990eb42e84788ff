"""What is done to one image on its way in: it is decoded to see that it can be, then kept byte for
byte or, where asked for, aligned, resized, encoded anew."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.data.conversion.align import Points, align
from manyfaces.data.dataset.sample import too_large, whole_jpeg
from manyfaces.data.limits import MOST_BYTES, MOST_PIXELS
from manyfaces.data.sources.source import Dropped, Place

QUALITY = 95  # as InsightFace's record builder writes

Pixels = NDArray[np.uint8]


class SourceImage(NamedTuple):
    """An image of a source and, where it is to be aligned, its landmarks."""

    place: Place
    points: Points | None = None

    def __str__(self) -> str:
        return str(self.place)


@dataclass(frozen=True)
class Edit:
    """What is done to every image; nothing by default."""

    reencode: int | None = None
    """JPEG quality, 1 to 100."""
    resize: int | None = None
    """Height and width in pixels; the shape is not kept."""
    align: bool = False

    def __call__(self, image: object) -> bytes:
        """Read a `SourceImage` and return its JPEG bytes. Raises `Dropped`."""
        assert isinstance(image, SourceImage)
        if self.align and image.points is None:
            raise Dropped("no landmarks for it")
        blob = image.place.read()
        if too_large(blob):
            raise Dropped(f"more than {MOST_PIXELS:,} pixels or {MOST_BYTES:,} bytes")
        pixels = _decoded(blob)
        is_jpeg = blob[:2] == b"\xff\xd8"
        if is_jpeg and not whole_jpeg(blob):
            raise Dropped("a JPEG that is cut off")
        edited = self._edited(pixels, image.points)
        if is_jpeg and edited is pixels and self.reencode is None:
            return blob
        quality = [cv2.IMWRITE_JPEG_QUALITY, self.reencode or QUALITY]
        return cv2.imencode(".jpg", edited, quality)[1].tobytes()

    def _edited(self, pixels: Pixels, points: Points | None) -> Pixels:
        """The pixels aligned and resized; the same object where nothing changes."""
        edited: Pixels | None = pixels
        if points is not None:
            edited = align(pixels, points)
        if edited is None:
            raise Dropped("landmarks that span no face")
        if self.resize and edited.shape[:2] != (self.resize, self.resize):
            shrinks = max(edited.shape[:2]) > self.resize
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            size = (self.resize, self.resize)
            edited = cv2.resize(edited, size, interpolation=interpolation)
        return edited


def _decoded(blob: bytes) -> Pixels:
    """The pixels, [height, width, 3] BGR. Raises `Dropped`."""
    try:
        pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
    except cv2.error:  # for a size that OpenCV refuses
        pixels = None
    if pixels is None:
        raise Dropped("not a decodable image")
    return np.asarray(pixels, np.uint8)
