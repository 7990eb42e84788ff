"""Transform solarise: bright pixels inverted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Solarise(Transform):
    """With probability `p`, numbers from `threshold` on are inverted."""

    keeps_size = True

    p: float
    threshold: int

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {"is_changed": uniform_NU[:, 0] < self.p}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["is_changed"] > 0:
            bright = fn.cast(image >= self.threshold, dtype=types.UINT8)
            image = fn.cast(image + bright * (255 - 2 * image), dtype=types.UINT8)
        return image
