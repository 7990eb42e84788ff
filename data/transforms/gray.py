"""Transform gray: no colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Gray(Transform):
    """With probability `p`, an image without colour."""

    columns = ((Stream.AUGMENT, 8),)
    keeps_size = True

    p: float

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {"saturation": np.where(uniform_NU[:, 0] < self.p, 0.0, 1.0)}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return fn.color_twist(image, saturation=given["saturation"])
