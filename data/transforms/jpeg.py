"""Transform jpeg: compressed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.draws import whole_between
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Jpeg(Transform):
    """With probability `p`, the image is compressed again with a quality within `quality`."""

    num_uniform = 2
    columns = (
        (Stream.AUGMENT_MORE, 13),
        (Stream.AUGMENT_MORE, 12),
    )
    keeps_size = True

    p: float
    quality: tuple[int, int]

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        compressed_N = uniform_NU[:, 0] < self.p
        quality = compressed_N * whole_between(*self.quality, uniform_NU[:, 1])
        return {"quality": quality.astype(np.int32)}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["quality"] > 0:
            image = fn.jpeg_compression_distortion(image, quality=given["quality"])
        return image
