"""One image on its way in: decoded to see that it can be, then kept byte for byte or, where asked
for, aligned, resized, encoded anew."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from manyfaces.data.dataset.sample import whole_jpeg
from manyfaces.data.dataset.write import Dropped
from manyfaces.data.sources.align import Points, align
from manyfaces.data.sources.source import Place

QUALITY = 95  # as InsightFace's record builder writes


class Wanted(NamedTuple):
    """An image and, where it is to be aligned, its landmarks."""

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

    def __call__(self, wanted: object) -> bytes:
        """JPEG bytes of a `Wanted`. Raises `Dropped`."""
        assert isinstance(wanted, Wanted)
        if self.align and wanted.points is None:
            raise Dropped("no landmarks for it")
        blob = wanted.place.read()
        pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
        if pixels is None:
            raise Dropped("not a decodable image")
        jpeg = blob[:2] == b"\xff\xd8"
        if jpeg and not whole_jpeg(blob):
            raise Dropped("a JPEG that is cut off")
        edited = pixels
        if wanted.points is not None:
            edited = align(pixels, wanted.points)
            if edited is None:
                raise Dropped("landmarks that span no face")
        if self.resize and edited.shape[:2] != (self.resize, self.resize):
            shrinks = max(edited.shape[:2]) > self.resize
            edited = cv2.resize(
                edited,
                (self.resize, self.resize),
                interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
            )
        if jpeg and edited is pixels and self.reencode is None:
            return blob
        return cv2.imencode(".jpg", edited, [cv2.IMWRITE_JPEG_QUALITY, self.reencode or QUALITY])[
            1
        ].tobytes()
