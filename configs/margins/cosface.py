"""Margin cosface: an additive cosine."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class CosFace(Margin):
    """Easier to train than ArcFace: small batches, noisy labels, low sample rates, 16 bits."""

    kind: Literal["cosface"] = "cosface"
    target: ClassVar[str] = "manyfaces.models.margins.cosface.CosFace"
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Subtracted from the target cosine (arXiv 1801.09414)."""
