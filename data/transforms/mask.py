"""Transform mask: a gray lower face."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.draws import between
from manyfaces.data.transforms.rectangle import paint_gray
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Mask(Transform):
    """With probability `p`, the lower face is painted gray, as a medical mask hides it. The upper
    edge is at a share of the height within `top`."""

    num_uniform = 2
    columns = (
        (Stream.AUGMENT_MORE, 6),
        (Stream.AUGMENT_MORE, 7),
    )
    keeps_size = True

    p: float
    top: tuple[float, float]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        height, width = image_hw
        masked_N = uniform_NU[:, 0] < self.p
        top = np.round(masked_N * between(*self.top, uniform_NU[:, 1]) * height)
        # Aligned to the five-point template, a face is about three quarters wide.
        cheek = masked_N * np.round(width / 8)
        shape = np.stack([height - top, width - 2 * cheek], 1) * masked_N[:, None]
        return {"anchor": np.stack([top, cheek], 1), "shape": shape}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return paint_gray(fn, image, given)
