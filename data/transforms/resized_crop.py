"""Transform resized_crop: a random part of an image, of any size and proportions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.transforms.draws import between
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class ResizedCrop(Transform):
    """With probability `p`, a part of the image with an area within `scale` of the image's and a
    width / height within `ratio`, in full size; else all of the image.

    A ratio is drawn among those with which the part fits into the image. torchvision draws area and
    ratio again where they do not fit, up to ten times, so that large areas are a little rarer
    there.
    """

    num_uniform = 5
    takes_any_size = True

    p: float
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        height, width = image_hw
        cropped_N = uniform_NU[:, 0] < self.p
        area_N = between(*self.scale, uniform_NU[:, 1]) * height * width
        # Height area / ratio and width area x ratio, squared, are to be at most the image's.
        low_N = np.maximum(self.ratio[0], area_N / height**2)
        high_N = np.minimum(self.ratio[1], width**2 / area_N)
        low_N = np.minimum(low_N, width**2 / area_N)
        high_N = np.maximum(high_N, low_N)
        ratio_N = low_N * (high_N / low_N) ** uniform_NU[:, 2]
        sides_N2 = np.sqrt(np.stack([area_N / ratio_N, area_N * ratio_N], 1)) / image_hw
        sides_N2 = np.where(cropped_N[:, None], np.minimum(sides_N2, 1), 1)
        start_N2 = uniform_NU[:, 3:5] * (1 - sides_N2)
        return {"start": start_N2, "end": start_N2 + sides_N2}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return fn.resize(
            image,
            size=image_hw,
            roi_start=given["start"],
            roi_end=given["end"],
            roi_relative=True,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
