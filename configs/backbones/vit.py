"""Backbone vit: the vision transformers that InsightFace trains for faces
(`recognition/arcface_torch/backbones/vit.py`)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from manyfaces.configs.backbones.backbone import Cost, Transformer, WithNeck
from manyfaces.configs.node import RESULTS


@dataclass(frozen=True)
class ViTShape:
    width: int
    depth: int
    heads: int = 8
    patch_px: int = 9
    mlp_ratio: int = 4


ViTSize = Literal["tiny", "small", "base", "large", "huge", "small_p8", "base_p8"]
VIT: dict[str, ViTShape] = {
    "tiny": ViTShape(256, 12),
    "small": ViTShape(512, 12),
    "base": ViTShape(512, 24),
    "large": ViTShape(768, 24),
    "huge": ViTShape(1024, 48),
    "small_p8": ViTShape(512, 12, patch_px=8, mlp_ratio=5),
    "base_p8": ViTShape(512, 24, heads=16, patch_px=8, mlp_ratio=3),
}


class ViT(WithNeck):
    """Transformers, for the largest datasets. The neck stands behind both linear layers of the
    embedding."""

    kind: Literal["vit"] = "vit"
    target: ClassVar[str] = "manyfaces.models.backbones.vit.ViT"
    checkpointed_share: ClassVar[float] = 0.125

    size: ViTSize = "base"
    """Width x depth: 256 x 12, 512 x 12, 512 x 24, 768 x 24 or 1024 x 48; patches of 9 pixels.
    `small_p8` and `base_p8` are CVLface's: 512 x 12 and 512 x 24, patches of 8."""
    pool: Literal["flatten", "mean"] = "flatten"
    """How the last tokens become the embedding: `flatten` gives each position weights of its own,
    as InsightFace's networks do; `mean` averages them, so that the network takes images of any
    size: its position embeddings are interpolated."""
    drop_path: Annotated[float, Field(ge=0, lt=1), RESULTS] = 0.1
    """Largest rate of stochastic depth, growing linearly with depth."""
    mask_ratio: Annotated[float, Field(ge=0, lt=1), RESULTS] = 0.1
    """Share of tokens hidden in training."""

    @property
    def takes_any_size(self) -> bool:
        return self.pool == "mean"

    @classmethod
    def published(cls) -> tuple["ViT", ...]:
        return tuple(cls(size=size) for size in get_args(ViTSize))

    def transformer(self, image_hw: tuple[int, int]) -> Transformer:
        shape = VIT[self.size]
        tokens = (image_hw[0] // shape.patch_px) * (image_hw[1] // shape.patch_px)
        return Transformer(shape.depth, shape.width, self._embedding_parameters(tokens))

    def num_tokens(self, image_hw: tuple[int, int]) -> int:
        """Patches of an image."""
        patch_px = VIT[self.size].patch_px
        return (image_hw[0] // patch_px) * (image_hw[1] // patch_px)

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        shape, dim = VIT[self.size], self.embedding_dim
        width = shape.width
        tokens = (image_hw[0] // shape.patch_px) * (image_hw[1] // shape.patch_px)
        patch = 3 * shape.patch_px**2
        block = (4 + 2 * shape.mlp_ratio) * width * width
        # Patches with their bias, positions, and the mask token.
        parameters = patch * width + width + tokens * width + width
        parameters += shape.depth * (block + (2 * 2 + 1 + shape.mlp_ratio + 1) * width) + 2 * width
        parameters += self._embedding_parameters(tokens)
        multiply_adds = tokens * patch * width
        multiply_adds += shape.depth * (tokens * block + 2 * tokens * tokens * width)
        multiply_adds += self._pooled(tokens) * width * width + width * dim
        # A fused attention keeps no matrix of tokens x tokens, and hidden tokens go through no
        # block.
        shown = shape.depth * int(tokens * (1 - self.mask_ratio)) * width
        activations = (8 + 2 * shape.mlp_ratio) * shown
        # What is added up over the blocks, which both LayerNorms of a block read.
        return Cost(parameters, multiply_adds, activations, 2 * shown)

    def _embedding_parameters(self, tokens: int) -> int:
        """Parameters behind the last block: two linear layers, with a neck behind each."""
        width, dim = VIT[self.size].width, self.embedding_dim
        linear = self._pooled(tokens) * width * width + width * dim
        return linear + self.neck_parameters(width) + self.neck_parameters(dim)

    def _pooled(self, tokens: int) -> int:
        """Vectors of which the embedding is made."""
        return tokens if self.pool == "flatten" else 1
