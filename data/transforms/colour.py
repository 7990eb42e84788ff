"""Transform colour: brightness, contrast and saturation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream
from manyfaces.data.transforms.gray import Gray
from manyfaces.data.transforms.transform import Drawn, Transform


@dataclass(frozen=True)
class Colour(Transform):
    """Relative changes of brightness, contrast and saturation, together with probability `p`."""

    num_uniform = 4
    columns = (
        (Stream.AUGMENT_MORE, 5),
        (Stream.AUGMENT, 5),
        (Stream.AUGMENT, 6),
        (Stream.AUGMENT, 7),
    )
    keeps_size = True

    p: float
    brightness: float
    contrast: float
    saturation: float

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        changed_N = uniform_NU[:, 0] < self.p
        signed = 2 * uniform_NU[:, 1:] - 1
        return {
            "brightness": 1 + self.brightness * signed[:, 0] * changed_N,
            "contrast": 1 + self.contrast * signed[:, 1] * changed_N,
            "saturation": 1 + self.saturation * signed[:, 2] * changed_N,
        }

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return fn.color_twist(
            image,
            brightness=given["brightness"],
            contrast=given["contrast"],
            saturation=given["saturation"],
        )

    def joined(self, following: Transform) -> Transform | None:
        """Gray behind it is a saturation of 0: colours are changed, and rounded, once."""
        return ColourThenGray(self, following) if isinstance(following, Gray) else None


class ColourThenGray(Transform):
    """Brightness, contrast and saturation, and then some images gray."""

    keeps_size = True

    def __init__(self, colour: Colour, gray: Gray) -> None:
        self.colour, self.gray = colour, gray

    @property
    def parts(self) -> tuple[Transform, ...]:
        return (self.colour, self.gray)

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        num_colour = self.colour.num_uniform
        drawn = self.colour.draw(uniform_NU[:, :num_colour], image_hw)
        gray = self.gray.draw(uniform_NU[:, num_colour:], image_hw)
        return drawn | {"saturation": drawn["saturation"] * gray["saturation"]}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return self.colour.apply(fn, types, image, given, image_hw)
