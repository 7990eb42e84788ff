"""Transform flip: left and right exchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.geometric import Geometric
from manyfaces.data.transforms.transform import Drawn


@dataclass(frozen=True)
class Flip(Geometric):
    """A horizontal flip with probability `p`. Alone it copies pixels exactly, without a warp."""

    columns = ((Stream.AUGMENT, 0),)
    keeps_size = True
    works_in_place = True

    p: float

    def matrix(
        self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> NDArray[np.float64]:
        flipped_N = uniform_NU[:, 0] < self.p
        matrix = np.zeros((len(uniform_NU), 2, 3))
        matrix[:, 0, 0] = np.where(flipped_N, -1, 1)
        matrix[:, 0, 2] = np.where(flipped_N, image_hw[1], 0)
        matrix[:, 1, 1] = 1
        return matrix

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {"flip": uniform_NU[:, 0] < self.p}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return fn.flip(image, horizontal=given["flip"])

    def change_in_place(self, images_NHWC: NDArray[np.uint8], given: Drawn) -> None:
        for i in np.flatnonzero(given["flip"]).tolist():
            cv2.flip(images_NHWC[i], 1, images_NHWC[i])
