"""Transform low_resolution: smaller and large again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.draws import whole_between
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class LowResolution(Transform):
    """With probability `p`, the image is made smaller and large again (AdaFace's augmentation,
    arXiv 2204.00964). Its shorter side in between is within `side_px`."""

    num_uniform = 2
    columns = (
        (Stream.AUGMENT_MORE, 11),
        (Stream.AUGMENT_MORE, 10),
    )

    p: float
    side_px: tuple[int, int]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        lowered_N = uniform_NU[:, 0] < self.p
        shorter = min(image_hw)
        side = np.minimum(whole_between(*self.side_px, uniform_NU[:, 1]), shorter) * lowered_N
        height, width = (np.round(side * length / shorter) for length in image_hw)
        return {"height": height, "width": width}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["height"] > 0:
            image = fn.resize(
                image, resize_x=given["width"], resize_y=given["height"], antialias=True
            )
            image = fn.resize(image, size=image_hw, antialias=True)
        return image
