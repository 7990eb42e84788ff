"""Backbone custom: one of your own."""

from typing import Annotated, Any, ClassVar

from pydantic import PositiveInt

from manyfaces.configs.backbones.backbone import Backbone, Cost
from manyfaces.configs.kinds import Custom
from manyfaces.configs.node import NOTHING


class CustomBackbone(Custom, Backbone):
    """A network of your own: a `torch.nn.Module` in a file, made with `parameters`, and with
    `embedding_dim` and `image_hw` where it takes them.

    It returns embeddings [N, embedding_dim] of float images [N, 3, height, width], or an
    `Output`. Activation checkpointing and `layer_decay` need one that is derived from
    `manyfaces.models.backbones.backbone.Backbone`.
    """

    base: ClassVar[str] = "torch.nn.Module"

    num_parameters: Annotated[PositiveInt, NOTHING] = 10_000_000
    """Its number of parameters, for the plan."""
    multiply_adds: Annotated[PositiveInt, NOTHING] = 1_000_000_000
    """Multiply-adds of one image's forward pass, for the plan."""

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        return Cost(self.num_parameters, self.multiply_adds, self.multiply_adds // 100)

    def build(self, **more: Any) -> Any:
        return super().build(embedding_dim=self.embedding_dim, **more)
