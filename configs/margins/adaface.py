"""Margin adaface: a margin by image quality."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class AdaFace(Margin):
    """Images of mixed quality, surveillance among them: blurred faces that nobody could recognise
    pull less. The norms' statistics are of global batches, and in the checkpoint."""

    kind: Literal["adaface"] = "adaface"
    target: ClassVar[str] = "manyfaces.models.margins.adaface.AdaFace"
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.4
    """Largest margin, as angle and as cosine (arXiv 2204.00964)."""
    h: Annotated[float, Field(gt=0, le=10)] = 0.333
    """How much of the norms' spread counts as quality."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of a batch in the running mean and deviation of the norms."""
