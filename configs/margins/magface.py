"""Margin magface: a margin by the embedding's norm."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from manyfaces.configs.margins.margin import Margin


class MagFace(Margin):
    """Where the embedding's norm is to tell the image's quality afterwards."""

    kind: Literal["magface"] = "magface"
    target: ClassVar[str] = "manyfaces.models.margins.magface.MagFace"
    low: PositiveFloat = 10.0
    """Norms below count as this (arXiv 2103.06627, l_a)."""
    high: PositiveFloat = 110.0
    """Norms above count as this (u_a)."""
    low_m: Annotated[float, Field(ge=0, le=1.5)] = 0.45
    """Additive angle at `low` (l_m)."""
    high_m: Annotated[float, Field(ge=0, le=1.5)] = 0.8
    """Additive angle at `high` (u_m)."""
    regulariser: NonNegativeFloat = 35.0
    """Weight of the term that draws norms upwards (lambda_g)."""

    @model_validator(mode="after")
    def _ordered(self) -> "MagFace":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self
