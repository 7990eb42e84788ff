"""A transform that is carried out for some of the images only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.transforms.transform import Drawn, Transform


class Sometimes(Transform):
    """Another transform with probability `p`, of which the other need not know."""

    def __init__(self, p: float, transform: Transform) -> None:
        self.p, self.transform = p, transform
        self.num_uniform = 1 + transform.num_uniform
        self.keeps_size = transform.keeps_size

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {
            "is_changed": uniform_NU[:, 0] < self.p,
            **self.transform.draw(uniform_NU[:, 1:], image_hw),
        }

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["is_changed"] > 0:
            image = self.transform.apply(fn, types, image, given, image_hw)
        return image
