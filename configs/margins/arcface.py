"""Margin arcface: an additive angle."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class ArcFace(Margin):
    """The default: clean data of any size."""

    kind: Literal["arcface"] = "arcface"
    target: ClassVar[str] = "manyfaces.models.margins.arcface.ArcFace"
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 1801.07698)."""
    gradient: Literal["exact", "straight_through"] = "exact"
    """`straight_through` is InsightFace's: cos(theta + m) without a kink at pi, its gradient that
    of cos(theta); for parity with its models, and milder for transformers."""
