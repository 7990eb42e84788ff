"""Transform rand_augment: some operations in a row, each drawn anew (arXiv 1909.13719)."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.transforms.transform import Drawn, Transform

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""The operations of torchvision's `RandAugment`; each is as likely as another."""
STRONGEST = 30
"""The largest magnitude."""
_SHEAR, _SHIFT, _DEGREES, _ENHANCE, _BITS = 0.3, 150 / 331, 30.0, 0.9, 4
"""At the largest magnitude: shear, share of the side, degrees, change of an enhancement's factor
from 1, bits that are cut."""
_GEOMETRIC = OPERATIONS.index("rotate")
"""Operations from 1 to this one move pixels."""
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


class RandAugment(Transform):
    """With probability `p`, `num_ops` operations of strength `magnitude`, of 30, with either sign.

    Pixels are moved without interpolation, and what comes into the image is black, as torchvision
    has it. Enhancements are those of Pillow's `ImageEnhance`: blends with a black, gray, flat or
    smoothed image, by a factor.
    """

    def __init__(self, p: float, num_ops: int, magnitude: int) -> None:
        self.p, self.num_ops, self.strength = p, num_ops, magnitude / STRONGEST
        self.num_uniform = 1 + 2 * num_ops

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        changed_N = uniform_NU[:, 0] < self.p
        drawn: Drawn = {}
        for number in range(self.num_ops):
            choice_N, sign_N = uniform_NU[:, 1 + 2 * number], uniform_NU[:, 2 + 2 * number]
            op_N = np.floor(choice_N * len(OPERATIONS)).astype(np.int64) * changed_N
            signed_N = np.where(sign_N < 0.5, self.strength, -self.strength)
            drawn[f"op_{number}"] = op_N
            drawn[f"matrix_{number}"] = _matrices(op_N, signed_N, image_hw)
            drawn[f"factor_{number}"] = 1 + _ENHANCE * signed_N
        return drawn

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        for number in range(self.num_ops):
            op, factor = given[f"op_{number}"], given[f"factor_{number}"]
            if op >= 1 and op <= _GEOMETRIC:
                image = fn.warp_affine(
                    image,
                    matrix=given[f"matrix_{number}"],
                    size=image_hw,
                    fill_value=0,
                    interp_type=types.INTERP_NN,
                )
            elif op == OPERATIONS.index("brightness"):
                image = fn.brightness(image, brightness=factor)
            elif op == OPERATIONS.index("colour"):
                image = fn.saturation(image, saturation=factor)
            elif op == OPERATIONS.index("contrast"):
                gray = fn.color_space_conversion(
                    image, image_type=types.RGB, output_type=types.GRAY
                )
                image = _blend(fn, image, fn.reductions.mean(gray), factor)
            elif op == OPERATIONS.index("sharpness"):
                smooth = fn.filter(image, _SMOOTH, dtype=types.FLOAT)
                image = _blend(fn, image, smooth, factor)
            elif op == OPERATIONS.index("posterize"):
                image = image - image % self._posterized()
                image = fn.cast(image, dtype=types.UINT8)
            elif op == OPERATIONS.index("solarize"):
                is_bright = image >= self._solarized()
                image = fn.cast(image + is_bright * (255 - 2 * image), dtype=types.UINT8)
            elif op == OPERATIONS.index("autocontrast"):
                low = fn.reductions.min(image, axes=(0, 1), keep_dims=True)
                high = fn.reductions.max(image, axes=(0, 1), keep_dims=True)
                image = _stretched(fn, types, image, low, high)
            elif op == OPERATIONS.index("equalize"):
                image = fn.equalize(image)
        return image

    def _posterized(self) -> int:
        """The step between the levels that are left."""
        return int(2 ** round(_BITS * self.strength))

    def _solarized(self) -> int:
        """The level from which on pixels are inverted."""
        return math.ceil(255 * (1 - self.strength))


def _matrices(
    op_N: NDArray[np.int64], signed_N: NDArray[np.float64], image_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """[N, 2, 3] from output to input pixels, counted from the corner of the corner pixel; nothing
    is moved by operations that are not geometric."""
    height, width = image_hw
    matrix = np.tile(np.array([[1.0, 0, 0], [0, 1, 0]]), (len(op_N), 1, 1))

    def own(word: str) -> NDArray[np.float64]:
        return np.where(op_N == OPERATIONS.index(word), signed_N, 0)

    matrix[:, 0, 1] = _SHEAR * own("shear_x")
    matrix[:, 1, 0] = _SHEAR * own("shear_y")
    matrix[:, 0, 2] = np.trunc(_SHIFT * width * own("translate_x"))
    matrix[:, 1, 2] = np.trunc(_SHIFT * height * own("translate_y"))
    angle_N = np.radians(_DEGREES) * own("rotate")
    turned = op_N == OPERATIONS.index("rotate")
    cos, sin = np.cos(angle_N), np.sin(angle_N)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], 1)
    centre = np.array([width / 2, height / 2])
    matrix[turned, :, :2] = turn[turned]
    matrix[turned, :, 2] = centre - turn[turned] @ centre
    return matrix


def _blend(fn: Any, image: Any, other: Any, factor: Any) -> Any:
    """other + factor (image - other), within 0 to 255."""
    return fn.cast_like(other + factor * (image - other), image)


def _stretched(fn: Any, types: Any, image: Any, low: Any, high: Any) -> Any:
    """Each channel stretched from `low` and `high` to 0 and 255; a flat one stays as it is."""
    is_flat = high == low
    spread = fn.cast(high, dtype=types.FLOAT) - low + is_flat
    stretched = (image - fn.cast(low, dtype=types.FLOAT)) * 255.0 / spread
    return fn.cast_like(stretched + is_flat * image, image)
