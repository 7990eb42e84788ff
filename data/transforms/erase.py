"""Transform erase: a gray rectangle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.draws import whole_between
from manyfaces.data.transforms.rectangle import paint_gray
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Erase(Transform):
    """With probability `p`, a random rectangle with sides within `side_px` is painted gray (random
    erasing, arXiv 1708.04896)."""

    num_uniform = 5
    columns = (
        (Stream.AUGMENT, 9),
        (Stream.AUGMENT, 10),
        (Stream.AUGMENT, 11),
        (Stream.AUGMENT, 12),
        (Stream.AUGMENT, 13),
    )
    keeps_size = True

    p: float
    side_px: tuple[int, int]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        erased_N = uniform_NU[:, 0] < self.p
        shape = np.minimum(whole_between(*self.side_px, uniform_NU[:, 1:3]), image_hw)
        shape *= erased_N[:, None]
        anchor = np.floor(uniform_NU[:, 3:5] * (np.array(image_hw) - shape + 1))
        return {"anchor": anchor, "shape": shape}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return paint_gray(fn, image, given)
