"""Augmentation as it was when all transforms were keys of one mapping: the images that runs of then
have seen, and go on with."""

import math
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from manyfaces.configs import rng

DEFAULTS: dict[str, Any] = {
    "mask": 0.0,
    "mask_top": (0.5, 0.65),
    "flip": 0.5,
    "misalign": 1.0,
    "shift_px": 0.0,
    "scale": 0.0,
    "rotate_deg": 0.0,
    "crop": 0.0,
    "crop_min": 0.7,
    "colour": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "gray": 0.0,
    "blur": 0.0,
    "blur_sigma_px": (0.5, 2.0),
    "low_resolution": 0.0,
    "low_resolution_px": (22, 112),
    "jpeg": 0.0,
    "jpeg_quality": (30, 90),
    "erase": 0.0,
    "erase_px": (16, 56),
}
_GRAY = (127, 127, 127)


def settings(**changed: Any) -> Any:
    """The old mapping with its defaults."""
    return SimpleNamespace(**DEFAULTS | changed)


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


def draw(config: Any, seed: int, positions: NDArray[np.int64], image_px: int) -> Choices:
    """The choices at each position of the stream (one position is one appearance of a sample)."""
    counters = positions.astype(np.uint64)[:, None] * np.uint64(_DRAWS) + np.arange(_DRAWS).astype(
        np.uint64
    )
    u = rng.uniform(rng.key(seed, rng.Stream.AUGMENT), counters)
    v = rng.uniform(rng.key(seed, rng.Stream.AUGMENT_MORE), counters)
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


def decode(
    blobs: list[NDArray[np.uint8]], config: Any, choices: Choices, image_px: int
) -> NDArray[np.uint8]:
    """The images, changed as on a CPU: flips alone by OpenCV, all else by DALI."""
    names = _choice_names(config)
    flips = names == ["flip"]
    pipeline = _graph(
        image_px,
        config,
        [] if flips else names,
        batch_size=len(blobs),
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
    )
    pipeline.build()
    pipeline.feed_input("jpeg", blobs)
    for name in [] if flips else names:
        pipeline.feed_input(name, getattr(choices, name))
    (output,) = pipeline.run()
    images = np.array(output.as_tensor())
    for i in np.flatnonzero(choices.flip).tolist() if flips else []:
        cv2.flip(images[i], 1, images[i])
    return images


def _choice_names(augment: Any) -> list[str]:
    """The fields of `Choices` that this configuration needs fed."""
    names = ["mask_anchor", "mask_shape"] if augment.mask else []
    warps = augment.shift_px or augment.scale or augment.rotate_deg or augment.crop
    names += ["matrix"] if warps else ["flip"] if augment.flip else []
    colours = augment.brightness or augment.contrast or augment.saturation or augment.gray
    names += ["brightness", "contrast", "saturation"] if colours else []
    names += ["blur_sigma"] if augment.blur else []
    names += ["low_px"] if augment.low_resolution else []
    names += ["jpeg_quality"] if augment.jpeg else []
    return names + (["erase_anchor", "erase_shape"] if augment.erase else [])


@pipeline_def(enable_conditionals=True)
def _graph(px: int, augment: Any, names: list[str]) -> object:
    """JPEG bytes and choices to images. An `if` on a choice splits the batch: only the images that
    it is about pay for the change."""
    image = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
    fed = {
        name: fn.external_source(
            name=name,
            dtype=types.INT32 if name in ("flip", "jpeg_quality") else types.FLOAT,
            ndim=2 if name == "matrix" else 1 if name.endswith(("anchor", "shape")) else 0,
        )
        for name in names
    }
    image = fn.decoders.image(image, device="cpu", output_type=types.RGB)
    height, width = (image.shape()[axis] for axis in (0, 1))
    if (height != px) or (width != px):
        image = fn.resize(image, size=(px, px), antialias=True)
    if "mask_shape" in fed:
        image = fn.erase(
            image,
            anchor=fed["mask_anchor"],
            shape=fed["mask_shape"],
            axis_names="HW",
            fill_value=_GRAY,
        )
    if "matrix" in fed:
        image = fn.warp_affine(
            image, matrix=fed["matrix"], size=(px, px), interp_type=types.INTERP_LINEAR
        )
    if "flip" in fed:
        image = fn.flip(image, horizontal=fed["flip"])
    if "saturation" in fed:
        image = fn.color_twist(
            image, **{name: fed[name] for name in ("brightness", "contrast", "saturation")}
        )
    if "blur_sigma" in fed:  # noqa: SIM102 - this condition is of the graph, the next one of each image
        if fed["blur_sigma"] > 0:
            image = fn.gaussian_blur(image, sigma=fed["blur_sigma"])
    if "low_px" in fed:  # noqa: SIM102
        if fed["low_px"] > 0:
            image = fn.resize(image, resize_x=fed["low_px"], resize_y=fed["low_px"], antialias=True)
            image = fn.resize(image, size=(px, px), antialias=True)
    if "jpeg_quality" in fed:  # noqa: SIM102
        if fed["jpeg_quality"] > 0:
            image = fn.jpeg_compression_distortion(image, quality=fed["jpeg_quality"])
    if "erase_shape" in fed:
        image = fn.erase(
            image,
            anchor=fed["erase_anchor"],
            shape=fed["erase_shape"],
            axis_names="HW",
            fill_value=_GRAY,
        )
    return image
