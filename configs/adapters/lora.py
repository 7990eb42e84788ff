"""Adapter lora: low-rank changes of linear layers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from manyfaces.configs.adapters.adapter import Adapter
from manyfaces.configs.node import RESULTS

PROJECTIONS = ("q", "k", "v")
_MLP_RATIO = 4


class LoRA(Adapter):
    """Linear layers get a trained product of two narrow matrices beside their fixed weight
    (arXiv 2106.09685). The defaults are FRoundation's for DINOv2 (arXiv 2410.23831), but for its
    dropout of 0.25."""

    kind: Literal["lora"] = "lora"
    target: ClassVar[str] = "manyfaces.models.adapters.lora.LoRA"

    rank: PositiveInt = 16
    """Rank r of the product."""
    alpha: Annotated[PositiveFloat, RESULTS] = 16.0
    """The product is scaled by alpha / sqrt(r), or by alpha / r."""
    rank_stabilised: Annotated[bool, RESULTS] = True
    """Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732), which learns as well at any rank."""
    dropout: Annotated[float, Field(ge=0, lt=1), RESULTS] = 0.0
    """Share of the layer's inputs that the product does not see in training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("q", "v")
    """`q`, `k` and `v` are those projections of every attention, also where one layer computes all
    three; any other word is a pattern of layers' names, such as `*.mlp.fc1`."""

    def num_parameters(self, depth: int, width: int) -> int:
        sides = [2 if each in PROJECTIONS else 1 + _MLP_RATIO for each in self.targets]
        return depth * self.rank * sum(sides) * width
