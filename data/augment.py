"""Random choices of augmentation as pure functions of (seed, position); DALI only carries them out."""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import counter, schema

_STREAM = 3  # of the counter; data.order has 1 and 2
_DRAWS = 16  # random numbers a position, so that one more kind of change does not move the others


@dataclass(frozen=True)
class Choices:
    """One row an image. `matrix` maps output to input pixels and holds flip, shift, scale and rotation."""

    matrix: NDArray[np.float32]  # [N, 2, 3]
    flip: NDArray[np.int32]  # [N]
    brightness: NDArray[np.float32]  # [N], 1 is unchanged; likewise contrast and saturation
    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    erase_anchor: NDArray[np.float32]  # [N, 2] (y, x) pixels
    erase_shape: NDArray[np.float32]  # [N, 2] (h, w) pixels; (0, 0) is nothing erased

    def __getitem__(self, rows: NDArray[np.int64]) -> "Choices":
        return Choices(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw(config: schema.Augment, seed: int, positions: NDArray[np.int64], image_px: int) -> Choices:
    """The choices at each position of the stream (one position is one appearance of a sample)."""
    counters = positions.astype(np.uint64)[:, None] * np.uint64(_DRAWS) + np.arange(_DRAWS).astype(np.uint64)
    u = counter.uniform(counter.key(seed, _STREAM), counters)
    signed = 2 * u - 1

    flip = u[:, 0] < config.flip
    shift = config.shift_px * signed[:, 1:3]
    scale = 1 + config.scale * signed[:, 3]
    angle = math.radians(config.rotate_deg) * signed[:, 4]
    centre = image_px / 2
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    mirror = np.where(flip, -1.0, 1.0)
    matrix = np.empty((len(positions), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos * mirror, sin, -sin * mirror, cos
    matrix[:, :, 2] = centre + shift - matrix[:, :, :2].sum(-1) * centre

    gray = u[:, 8] < config.gray
    low, high = config.erase_px
    sides = np.floor(low + u[:, 10:12] * (high - low + 1)) * (u[:, 9] < config.erase)[:, None]
    sides = np.minimum(sides, image_px)
    return Choices(
        matrix=matrix.astype(np.float32),
        flip=flip.astype(np.int32),
        brightness=(1 + config.brightness * signed[:, 5]).astype(np.float32),
        contrast=(1 + config.contrast * signed[:, 6]).astype(np.float32),
        saturation=np.where(gray, 0, 1 + config.saturation * signed[:, 7]).astype(np.float32),
        erase_anchor=np.floor(u[:, 12:14] * (image_px - sides + 1)).astype(np.float32),
        erase_shape=sides.astype(np.float32),
    )
