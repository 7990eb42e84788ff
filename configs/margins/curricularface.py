"""Margin curricularface: hard classes come in as training goes on."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.margins.margin import Margin


class CurricularFace(Margin):
    """Long schedules on clean data: the logits of hard classes are raised as the model learns;
    steps cost a little more, one collective among it."""

    kind: Literal["curricularface"] = "curricularface"
    target: ClassVar[str] = "manyfaces.models.margins.curricularface.CurricularFace"
    m: Annotated[float, Field(ge=0, le=1.5)] = 0.5
    """Additive angle in radians (arXiv 2004.00288)."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of a batch in the running mean of the target cosines."""

    def check(self, config: Any) -> None:
        if config.head.scale > 256:
            raise ValueError(
                f"head.scale {config.head.scale:g}: curricularface doubles logits, at most 256 can "
                "be held; lower head.scale"
            )
