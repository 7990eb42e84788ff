"""Transform misalign: shift, change of size and rotation."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform


class Misalign(Transform):
    """Shift, change of size and rotation together, as a face that was found badly is aligned badly
    (the misalignments of ARoFace, arXiv 2407.14972)."""

    kind: Literal["misalign"] = "misalign"
    target: ClassVar[str] = "manyfaces.data.transforms.misalign.Misalign"
    p: Probability = 1.0
    """Probability that an image is changed."""
    shift_px: Annotated[float, Field(ge=0, le=56)] = 0.0
    """Largest translation along each axis, uniform."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest relative change of size, uniform."""
    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest rotation, uniform."""

    def has_effect(self) -> bool:
        return self.p > 0 and any((self.shift_px, self.scale, self.rotate_deg))
