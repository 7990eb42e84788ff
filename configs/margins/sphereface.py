"""Margin sphereface: a multiplicative angle."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class SphereFace(Margin):
    """The multiplicative angle, to compare with published work; scale 30."""

    kind: Literal["sphereface"] = "sphereface"
    target: ClassVar[str] = "manyfaces.models.margins.sphereface.SphereFace"
    m: Annotated[float, Field(ge=1, le=8)] = 1.5
    """Factor of the angle (arXiv 1704.08063 has 4 with annealing, arXiv 2109.05565 and its code 1.5
    without)."""
