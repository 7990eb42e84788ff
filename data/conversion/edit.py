"""What is done to one image on its way in: it is decoded to see that it can be, then kept byte for
byte or, where asked for, aligned, resized, encoded anew."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2

from manyfaces.data.conversion.align import Points, align
from manyfaces.data.conversion.pixels import Pixels, decoded, is_jpeg
from manyfaces.data.sources.source import Dropped, Place

QUALITY = 95  # as InsightFace's record builder writes


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
        pixels = decoded(blob)
        edited = self._edited(pixels, image.points)
        if is_jpeg(blob) and edited is pixels and self.reencode is None:
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
