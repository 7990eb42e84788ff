"""Transform colour: brightness, contrast and saturation."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform


class Colour(Transform):
    """Brightness, contrast and saturation together."""

    kind: Literal["colour"] = "colour"
    target: ClassVar[str] = "manyfaces.data.transforms.colour.Colour"
    p: Probability = 1.0
    """Probability that an image is changed."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of brightness, uniform."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of contrast around mid gray, uniform."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of saturation, uniform."""

    def has_effect(self) -> bool:
        return self.p > 0 and any((self.brightness, self.contrast, self.saturation))
