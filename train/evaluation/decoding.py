"""Encoded images to pixels for evaluation: without augmentation, one batch ahead."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.cluster.world import spare_cores
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.data.conversion.pixels import decoded, is_jpeg
from manyfaces.data.feed.decode import Decoder, Decoding
from manyfaces.train.evaluation.result import Encoded

_PNG = b"\x89PNG\r\n\x1a\n"
_FAST_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
_MOST_THREADS = 8
"""More of them gain nothing beside what waits for the images."""


class Decoded(NamedTuple):
    """The images of a batch that could be decoded."""

    images_NHWC: Tensor
    """uint8 RGB, on the device."""
    rows_N: NDArray[np.int64]
    """Which images of the batch they are."""


class ImageDecoder:
    """Decodes batches of up to `batch_size` images to one height and width.

    Images that are not whole, decodable JPEGs or PNGs are left out; so may all images of a
    batch.
    """

    def __init__(
        self, image_hw: tuple[int, int], batch_size: int, device: torch.device, threads: int = 1
    ) -> None:
        self._device = device
        self._decoder = Decoder(
            image_hw, batch_size, threads=threads, device=device, takes_png=True
        )

    def start(self, images: Sequence[Encoded]) -> Decoding:
        """Begin to decode a batch in the background; `finish` it before the one that is started
        after the next."""
        return self._decoder.start([as_array(image) for image in images])

    def finish(self, started: Decoding) -> Decoded:
        """The images of a batch, for batches in the order in which they were started."""
        images_NHWC, good = self._decoder.finish(started)
        rows_N = np.flatnonzero(good)
        if len(rows_N) == len(good):
            return Decoded(images_NHWC, rows_N)
        return Decoded(images_NHWC[torch.from_numpy(rows_N).to(self._device)], rows_N)


def as_array(image: Encoded) -> NDArray[np.uint8]:
    """The bytes of an encoded image as an array, without a copy where they are contiguous."""
    if isinstance(image, bytes):
        return np.frombuffer(image, np.uint8)
    return np.ascontiguousarray(image).reshape(-1)


def decodable(image: Encoded) -> Encoded:
    """The bytes of an image of whatever format as `ImageDecoder` takes them: a JPEG or PNG as it
    is, another one as a PNG of its pixels. Raises `Dropped` for what is none."""
    if bytes(image[: len(_PNG)]) == _PNG or is_jpeg(bytes(image[:2])):
        return image
    return np.asarray(cv2.imencode(".png", decoded(bytes(image)), _FAST_PNG)[1], np.uint8)


def decode_threads() -> int:
    """Threads that decode where nothing else needs the cores: as many as torch has."""
    return min(torch.get_num_threads(), _MOST_THREADS)


def worker_decode_threads(config: Config, on_node: int | None = None) -> int:
    """Threads that decode in a worker of this run, of which there are `on_node` here: where
    `data.decode_threads` is `auto`, the cores of the node that are left to it."""
    threads = config.data.decode_threads
    if threads == "auto":
        return min(spare_cores(config.cluster.threads_per_worker, on_node), _MOST_THREADS)
    return threads


def not_decodable(name: str) -> UserError:
    """What to raise for an image that an evaluation cannot do without; `name` is the image's."""
    return UserError(f"{name} is not a whole, decodable JPEG; use an intact copy")
