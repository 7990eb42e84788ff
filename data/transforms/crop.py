"""Transform crop: a random part in full size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.geometric import Geometric


@dataclass(frozen=True)
class Crop(Geometric):
    """With probability `p`, a random part of the image in full size. It has the proportions of the
    image, and sides of `min_side` to 1 of the image's."""

    num_uniform = 4
    columns = (
        (Stream.AUGMENT_MORE, 1),
        (Stream.AUGMENT_MORE, 2),
        (Stream.AUGMENT_MORE, 3),
        (Stream.AUGMENT_MORE, 4),
    )

    p: float
    min_side: float

    def matrix(
        self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> NDArray[np.float64]:
        cropped_N = uniform_NU[:, 0] < self.p
        side = np.where(cropped_N, self.min_side + uniform_NU[:, 1] * (1 - self.min_side), 1)
        size_xy = np.array([image_hw[1], image_hw[0]])
        matrix = np.zeros((len(uniform_NU), 2, 3))
        matrix[:, 0, 0] = matrix[:, 1, 1] = side
        matrix[:, :, 2] = uniform_NU[:, 2:] * (1 - side)[:, None] * size_xy
        return matrix
