"""The images that embeddings are of, read again from where they were."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.conversion.pixels import decoded
from manyfaces.data.sources.source import Dropped, FileAt, Place
from manyfaces.data.sources.url_at import UrlAt
from manyfaces.train.embedding.facts import Facts
from manyfaces.train.embedding.images import open_path, open_url
from manyfaces.train.embedding.reader import Row
from manyfaces.train.embedding.source import ImageSource
from manyfaces.train.evaluation.result import Encoded

_GRAY = 200
"""Of the picture in place of an image that cannot be had."""


class StoredImages:
    """The images of rows of embeddings, as long as they are where they were."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._facts_of = {source.where: source for source in facts.sources}
        self._sources: dict[str, ImageSource] = {}
        self.missing = 0
        """How many could not be had."""

    def tile(self, row: Row) -> NDArray[np.uint8]:
        """The image as the network sees it: uint8 RGB [H, W, 3]; gray where it cannot be had."""
        try:
            blob = self._read(row)
            if blob is not None:
                return tile(blob, self.facts.image_hw)
        except (UserError, Dropped, OSError):
            pass
        self.missing += 1
        return np.full((*self.facts.image_hw, 3), _GRAY, np.uint8)

    def _read(self, row: Row) -> Encoded | None:
        facts = self._facts_of[row.source]
        if facts.in_files:
            place: Place = FileAt(str(Path(self.facts.folder) / facts.where / row.key))
            if (url := url_of(facts.where)) is not None:
                place = UrlAt(f"{url}/{row.key}")
            return place.read()
        images = self._source(facts.where).read(range(row.row, row.row + 1))
        # Where the source has changed, another image may be there.
        return next((image.blob for image in images if image.key == row.key), None)

    def _source(self, where: str) -> ImageSource:
        if where not in self._sources:
            options = self.facts.options.of_sources()
            if (url := url_of(where)) is not None:
                folder = Path(tempfile.gettempdir()) / "manyfaces-fetched"
                self._sources[where] = open_url(url, options, folder)
            else:
                self._sources[where] = open_path(Path(self.facts.folder) / where, options)
        return self._sources[where]


def tile(blob: Encoded, image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An encoded image in this height and width, uint8 RGB. Raises `Dropped` for what is none."""
    height, width = image_hw
    pixels = decoded(bytes(blob))
    if pixels.shape[:2] != image_hw:
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
    return np.asarray(pixels[:, :, ::-1], np.uint8)
