"""Random choices of augmentation as pure functions of (seed, position); DALI only carries them
out."""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng, schema

_STREAM, _MORE = 3, 4  # streams of the counter; data.order has 1 and 2
# random numbers a position and stream, so that one more kind of change does not move the others
_DRAWS = 16


@dataclass(frozen=True)
class Choices:
    """One row an image. `matrix` maps output to input pixels and holds flip, shift, scale, rotation
    and crop."""

    matrix: NDArray[np.float32]  # [N, 2, 3]
    flip: NDArray[np.int32]  # [N]
    brightness: NDArray[np.float32]  # [N], 1 is unchanged; likewise contrast and saturation
    contrast: NDArray[np.float32]
    saturation: NDArray[np.float32]
    erase_anchor: NDArray[np.float32]  # [N, 2] (y, x) pixels
    erase_shape: NDArray[np.float32]  # [N, 2] (h, w) pixels; (0, 0) is nothing erased
    mask_anchor: NDArray[np.float32]  # [N, 2] and
    mask_shape: NDArray[np.float32]  # [N, 2], likewise, in the image before it is warped
    blur_sigma: NDArray[np.float32]  # [N] pixels, 0 is sharp
    low_px: NDArray[np.float32]  # [N] side in between, 0 is left as it is
    jpeg_quality: NDArray[np.int32]  # [N], 0 is not compressed again

    def __getitem__(self, rows: NDArray[np.int64]) -> "Choices":
        return Choices(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def draw(config: schema.Augment, seed: int, positions: NDArray[np.int64], image_px: int) -> Choices:
    """The choices at each position of the stream (one position is one appearance of a sample)."""
    counters = positions.astype(np.uint64)[:, None] * np.uint64(_DRAWS) + np.arange(_DRAWS).astype(
        np.uint64
    )
    u = rng.uniform(rng.key(seed, _STREAM), counters)
    v = rng.uniform(rng.key(seed, _MORE), counters)
    signed = 2 * u - 1

    def between(
        low: float, high: float, share: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        return np.where(chosen, low + share * (high - low), 0)

    def whole_between(
        low: int, high: int, share: NDArray[np.float64], chosen: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        return np.floor(between(low, high + 1, share, chosen))

    flip = u[:, 0] < config.flip
    moved = v[:, 0] < config.misalign
    shift = config.shift_px * signed[:, 1:3] * moved[:, None]
    scale = 1 + config.scale * signed[:, 3] * moved
    angle = math.radians(config.rotate_deg) * signed[:, 4] * moved
    centre = image_px / 2
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    mirror = np.where(flip, -1.0, 1.0)
    matrix = np.empty((len(positions), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = (
        cos * mirror,
        sin,
        -sin * mirror,
        cos,
    )
    matrix[:, :, 2] = centre + shift - matrix[:, :, :2].sum(-1) * centre
    # The cropped part of the changed image: output pixel p comes from start + side p.
    side = np.where(v[:, 1] < config.crop, config.crop_min + v[:, 2] * (1 - config.crop_min), 1)
    start = v[:, 3:5] * (image_px * (1 - side))[:, None]
    matrix[:, :, 2] += (matrix[:, :, :2] @ start[:, :, None])[:, :, 0]
    matrix[:, :, :2] *= side[:, None, None]

    toned = v[:, 5] < config.colour
    gray = u[:, 8] < config.gray
    sides = np.minimum(
        whole_between(*config.erase_px, u[:, 10:12], (u[:, 9] < config.erase)[:, None]), image_px
    )
    masked = v[:, 6] < config.mask
    top = np.round(between(*config.mask_top, v[:, 7], masked) * image_px)
    cheek = np.where(
        masked, np.round(image_px / 8), 0
    )  # aligned to the five-point template, a face is about three quarters wide
    return Choices(
        matrix=matrix.astype(np.float32),
        flip=flip.astype(np.int32),
        brightness=(1 + config.brightness * signed[:, 5] * toned).astype(np.float32),
        contrast=(1 + config.contrast * signed[:, 6] * toned).astype(np.float32),
        saturation=np.where(gray, 0, 1 + config.saturation * signed[:, 7] * toned).astype(
            np.float32
        ),
        erase_anchor=np.floor(u[:, 12:14] * (image_px - sides + 1)).astype(np.float32),
        erase_shape=sides.astype(np.float32),
        mask_anchor=np.stack([top, cheek], 1).astype(np.float32),
        mask_shape=np.stack([masked * (image_px - top), masked * (image_px - 2 * cheek)], 1).astype(
            np.float32
        ),
        blur_sigma=between(*config.blur_sigma_px, v[:, 8], v[:, 9] < config.blur).astype(
            np.float32
        ),
        low_px=np.minimum(
            whole_between(*config.low_resolution_px, v[:, 10], v[:, 11] < config.low_resolution),
            image_px,
        ).astype(np.float32),
        jpeg_quality=whole_between(*config.jpeg_quality, v[:, 12], v[:, 13] < config.jpeg).astype(
            np.int32
        ),
    )
