"""Faces cut out of image files by their landmarks when they are asked for, a few ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import overload

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.align import align
from manyfaces.data.conversion.pixels import is_jpeg
from manyfaces.data.dataset.sample import too_large, whole_jpeg
from manyfaces.train.evaluation.decoding import decode_threads, not_decodable
from manyfaces.train.evaluation.result import Encoded

_AHEAD = 64
# Without compression a PNG costs less than the JPEG that it was cut out of, and loses nothing.
_AS_IT_IS = (cv2.IMWRITE_PNG_COMPRESSION, 0)


class AlignedImages(Sequence[Encoded]):
    """Faces of 112x112 as PNGs, each read and aligned when it is taken, by several threads where
    they are taken in order.

    Raises `UserError`, when the image is taken, for a file that is no whole image and for landmarks
    that span no face.
    """

    def __init__(
        self,
        path: Callable[[int], Path],
        points_N52: NDArray[np.floating],
        rows: range | None = None,
    ) -> None:
        self._path, self._points_N52 = path, points_N52
        self._rows = range(len(points_N52)) if rows is None else rows
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[int, Future[bytes]] = {}
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "AlignedImages": ...
    def __getitem__(self, index: int | slice) -> "Encoded | AlignedImages":
        if isinstance(index, slice):
            return AlignedImages(self._path, self._points_N52, self._rows[index])
        place = range(len(self))[index]
        if place - 1 == self._last:
            self._begin(place)
        elif place not in self._begun:
            self._begun.clear()  # those of another pass
        self._last = place
        begun = self._begun.pop(place, None)
        return self._read(place) if begun is None else begun.result()

    def _begin(self, first: int) -> None:
        """Let threads read the next images that they do not read already."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(decode_threads(), thread_name_prefix="align")
        for place in range(first, min(first + _AHEAD, len(self))):
            if place not in self._begun:
                self._begun[place] = self._pool.submit(self._read, place)

    def _read(self, place: int) -> bytes:
        row = self._rows[place]
        path = self._path(row)
        try:
            blob = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        if too_large(blob) or (is_jpeg(blob) and not whole_jpeg(blob)):
            raise not_decodable(str(path))
        pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) if blob else None
        if pixels is None:
            raise not_decodable(str(path))
        aligned = align(np.asarray(pixels, np.uint8), self._points_N52[row].astype(np.float64))
        if aligned is None:
            raise UserError(f"{path}: its five landmarks are one point and show no face; mend them")
        return bytes(cv2.imencode(".png", aligned, _AS_IT_IS)[1])
