"""Margin sphereface2: one binary problem a class."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from manyfaces.configs.margins.margin import Margin, check_binary


class SphereFace2(Margin):
    """Noisy labels, and verification by one threshold: each class is a yes-or-no question, with a
    learnt bias; scale 40, all classes in every step."""

    kind: Literal["sphereface2"] = "sphereface2"
    target: ClassVar[str] = "manyfaces.models.margins.sphereface2.SphereFace2"
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Margin on both sides of the threshold (arXiv 2108.01513)."""
    balance: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Weight of the own class against all others (lambda)."""
    t: Annotated[float, Field(ge=1, le=6)] = 3.0
    """Exponent that spreads the similarities."""
    weight: PositiveFloat = 50.0
    """Factor of the loss, the official code's: it brings gradients to the size of a softmax's."""

    def check(self, config: Any) -> None:
        check_binary("sphereface2", config)
