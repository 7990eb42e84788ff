"""Transform mask: a gray lower face."""

from typing import ClassVar, Literal

from pydantic import model_validator

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform, check_ordered


class Mask(Transform):
    """The lower face is painted gray, as a medical mask hides it."""

    kind: Literal["mask"] = "mask"
    target: ClassVar[str] = "manyfaces.data.transforms.mask.Mask"
    top: tuple[Probability, Probability] = (0.5, 0.65)
    """Lowest and highest upper edge of the mask, uniform, as a share of the height."""

    @model_validator(mode="after")
    def _ordered(self) -> "Mask":
        check_ordered("top", self.top)
        return self
