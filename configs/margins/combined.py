"""Margin combined: factor and summand of the angle, and summand of the cosine."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class Combined(Margin):
    """Between ArcFace and CosFace, as InsightFace's recipes of 2018 had it; tune m2 and m3 on a
    held-out set."""

    kind: Literal["combined"] = "combined"
    target: ClassVar[str] = "manyfaces.models.margins.combined.Combined"
    m1: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Factor of the angle: cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4)."""
    m2: Annotated[float, Field(ge=0, le=1.5)] = 0.3
    """Summand of the angle in radians, as ArcFace has it."""
    m3: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Subtracted from the target cosine, as CosFace has it."""
