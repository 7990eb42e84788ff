"""Margin uniface: one threshold for all pairs."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from manyfaces.configs.margins.margin import Margin, check_binary


class UniFace(Margin):
    """One threshold that separates all pairs, as verification uses it: a logistic loss of each
    class and a learnt bias; all classes in every step."""

    kind: Literal["uniface"] = "uniface"
    target: ClassVar[str] = "manyfaces.models.margins.uniface.UniFace"
    m: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Subtracted from the target cosine (Zhou et al., ICCV 2023)."""
    balance: PositiveFloat = 1.0
    """Weight of the other classes (lambda)."""

    def check(self, config: Any) -> None:
        check_binary("uniface", config)
