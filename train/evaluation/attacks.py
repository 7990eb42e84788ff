"""Changes to images that turn a verdict: projected gradient descent in the maximum norm (Madry et
al., ICLR 2018), in a region of the face and universally as FACESEC (CVPR 2021) has them.

Shapes: N images, H and W their height and width. Pixels are floats from 0 to 255.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manyfaces.configs.protocols.robustness import Region
from manyfaces.configs.rng import Stream, key, uniform

_SIDE = 112
"""The side of the aligned template that the regions are told in."""
_BOXES: dict[Region, tuple[tuple[int, int, int, int], ...]] = {
    "face": ((0, 0, 112, 112),),
    "sticker": ((6, 36, 30, 76),),
    # The rims of both glasses, the bridge between them and the temples.
    "glasses": (
        (40, 20, 44, 54),
        (60, 20, 64, 54),
        (40, 20, 64, 24),
        (40, 50, 64, 54),
        (40, 58, 44, 92),
        (60, 58, 64, 92),
        (40, 58, 64, 62),
        (40, 88, 64, 92),
        (48, 54, 52, 58),
        (48, 8, 52, 20),
        (48, 92, 52, 104),
    ),
    "lower_face": ((68, 16, 112, 96),),
}
"""Top, left, bottom and right of the boxes that are a region."""


@dataclass(frozen=True)
class Search:
    """How a change is looked for; `budget` and `step` in steps of 8 bits."""

    budget: float
    step: float
    steps: int
    universal: bool = False


def region_mask(region: Region, image_hw: tuple[int, int]) -> Tensor:
    """1 where a pixel may change and 0 elsewhere, float32 [H, W]."""
    height, width = image_hw
    mask_HW = torch.zeros(image_hw)
    for top, left, bottom, right in _BOXES[region]:
        rows = slice(round(top * height / _SIDE), round(bottom * height / _SIDE))
        columns = slice(round(left * width / _SIDE), round(right * width / _SIDE))
        mask_HW[rows, columns] = 1
    return mask_HW


def start_noise(seed: int, number: int, image_hw: tuple[int, int]) -> Tensor:
    """Uniform in [-1, 1), float32 [3, H, W]: a function of the seed and the image's number."""
    shape = (3, *image_hw)
    drawn = uniform(
        key(seed, Stream.ATTACK_START, number), np.arange(np.prod(shape), dtype=np.uint64)
    )
    return torch.from_numpy((2 * drawn - 1).astype(np.float32).reshape(shape))


def attacked(
    images_NCHW: Tensor,
    gains: Callable[[Tensor], Tensor],
    mask_HW: Tensor,
    noise_NCHW: Tensor,
    search: Search,
) -> Tensor:
    """The images changed so that `gains`, [N] of images, rises; with `universal` by one change,
    which starts from the first noise, so that the least of them rises.

    The changes are whole steps of 8 bits within the budget: the result is an image of 8 bits where
    the images are.
    """
    budget_HW = search.budget * mask_HW
    noise_NCHW = noise_NCHW[:1] if search.universal else noise_NCHW
    change_NCHW = noise_NCHW * budget_HW
    for _ in range(search.steps):
        change_NCHW = change_NCHW.detach().requires_grad_()
        with torch.enable_grad():
            gain_N = gains((images_NCHW + change_NCHW).clamp(0, 255))
            goal = gain_N.min() if search.universal else gain_N.sum()
            (gradient_NCHW,) = torch.autograd.grad(goal, change_NCHW)
        moved_NCHW = change_NCHW.detach() + min(search.step, search.budget) * gradient_NCHW.sign()
        change_NCHW = torch.minimum(torch.maximum(moved_NCHW, -budget_HW), budget_HW)
    return (images_NCHW + change_NCHW.detach().trunc()).clamp(0, 255)
