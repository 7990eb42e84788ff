"""Transform blur: a Gaussian blur."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.draws import between
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Blur(Transform):
    """With probability `p`, a Gaussian blur of a standard deviation within `sigma_px`."""

    num_uniform = 2
    columns = (
        (Stream.AUGMENT_MORE, 9),
        (Stream.AUGMENT_MORE, 8),
    )
    keeps_size = True

    p: float
    sigma_px: tuple[float, float]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        blurred_N = uniform_NU[:, 0] < self.p
        return {"sigma": blurred_N * between(*self.sigma_px, uniform_NU[:, 1])}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["sigma"] > 0:
            image = fn.gaussian_blur(image, sigma=given["sigma"])
        return image
