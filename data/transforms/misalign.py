"""Transform misalign: shift, change of size and rotation."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.geometric import Geometric


@dataclass(frozen=True)
class Misalign(Geometric):
    """Shift, change of size and rotation about the centre, together with probability `p`, as a face
    that was found badly is aligned badly (ARoFace, arXiv 2407.14972)."""

    num_uniform = 5
    columns = (
        (Stream.AUGMENT_MORE, 0),
        (Stream.AUGMENT, 1),
        (Stream.AUGMENT, 2),
        (Stream.AUGMENT, 3),
        (Stream.AUGMENT, 4),
    )

    p: float
    shift_px: float
    scale: float
    rotate_deg: float

    def matrix(
        self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> NDArray[np.float64]:
        moved_N = uniform_NU[:, 0] < self.p
        signed = (2 * uniform_NU[:, 1:] - 1) * moved_N[:, None]
        shift_xy = self.shift_px * signed[:, :2]
        scale = 1 + self.scale * signed[:, 2]
        angle = math.radians(self.rotate_deg) * signed[:, 3]
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        matrix = np.empty((len(uniform_NU), 2, 3))
        matrix[:, 0, 0], matrix[:, 0, 1] = cos, sin
        matrix[:, 1, 0], matrix[:, 1, 1] = -sin, cos
        centre_xy = np.array([image_hw[1] / 2, image_hw[0] / 2])
        matrix[:, :, 2] = centre_xy + shift_xy - matrix[:, :, :2] @ centre_xy
        return matrix
