"""The family of backbones: networks from images to embeddings."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import PositiveFloat, PositiveInt

from manyfaces.configs.adapters.adapter import Adapter
from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import NODE_PATH, RESULTS, TENSORS, Decides

Channels = tuple[float, float, float]


class Cost(NamedTuple):
    """What one backbone costs. A multiply-add counts once, as in the published tables (IResNet-50
    6.3 G, IResNet-100 12.1 G, ViT-T/S/B/L 1.5 / 5.7 / 11.4 / 25.3 G at 112 x 112)."""

    parameters: int
    """All parameters."""
    multiply_adds: int
    """Multiply-adds of one image's forward pass."""
    activations: int
    """Activation elements of one image that are kept for backward."""
    float32_activations: int = 0
    """Those of them that autocast keeps in float32."""


class Transformer(NamedTuple):
    """The shape of a transformer."""

    depth: int
    width: int
    embedding: int
    """Parameters of the layers that make the embedding."""


class Backbone(Kind):
    """A network from images to embeddings.

    `target` is a `torch.nn.Module`, made with `image_hw`, (height, width) in pixels, and with the
    fields but for `not_for_target`.
    """

    folder: ClassVar[str] = "manyfaces.configs.backbones"
    config_key: ClassVar[str] = "model"
    decides: ClassVar[Decides] = TENSORS
    not_for_target: ClassVar[tuple[str, ...]] = (
        "kind",
        "pixel_mean",
        "pixel_std",
        "init",
        "adapters",
    )
    checkpointed_share: ClassVar[float] = 1.0
    """Share of the activations that activation checkpointing leaves."""

    embedding_dim: PositiveInt = 512
    """Numbers of an embedding."""
    pixel_mean: Annotated[Channels, RESULTS] = (127.5, 127.5, 127.5)
    """Subtracted from the pixels (0 to 255) of each channel, red first, before the network sees
    them."""
    pixel_std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], RESULTS] = (
        127.5,
        127.5,
        127.5,
    )
    """What that difference is divided by."""
    init: Annotated[str | None, RESULTS, NODE_PATH] = None
    """Weights to start from: a run of ours, its best (`runs/OLD@best`) or a checkpoint,
    InsightFace's `backbone.pth`, AdaFace's `.ckpt`, a folder of CVLface's, or another file of
    weights (`.safetensors`, `.pth`). Nothing in it is run, and what matched is shown."""

    adapters: tuple[Adapter, ...] = ()
    """What is trained in place of the backbone's own weights: these then stay as `init` gives them,
    but for the embedding layer, and checkpoints do not hold them. Empty trains all weights."""

    @property
    def takes_any_size(self) -> bool:
        """Whether the network takes images of other sizes than the one that it is made for, as
        local views of pretraining without labels are."""
        return False

    @classmethod
    def published(cls) -> Sequence["Backbone"]:
        """The networks of this kind of which others have published weights for faces of 112 x 112
        pixels: what a file that does not say of which network it is is compared with."""
        return ()

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        """What the backbone costs on images of this height and width."""
        raise NotImplementedError

    def transformer(self, image_hw: tuple[int, int]) -> Transformer:
        """What adapters have to know; zeros where the backbone is no transformer, or an unknown
        one."""
        return Transformer(0, 0, 0)

    def trained_parameters(self, image_hw: tuple[int, int]) -> int:
        """Parameters that are trained: all, or about those of adapters and embedding layers; 0
        where adapters act on a network of unknown shape."""
        if not self.adapters:
            return self.cost(image_hw).parameters
        depth, width, embedding = self.transformer(image_hw)
        return embedding + sum(each.num_parameters(depth, width) for each in self.adapters)


class WithNeck(Backbone):
    """A backbone whose embedding layer has normalisations to choose, its neck."""

    neck: Literal["batchnorm", "layernorm", "none"] = "batchnorm"
    """What normalises the features of the embedding layer: BatchNorm, as the published models have
    it; LayerNorm, which looks at each image alone; or nothing. Where the rest of the network has no
    BatchNorm (`vit`, timm's transformers), the last two make the loss the same on any number of
    workers."""

    def neck_parameters(self, width: int) -> int:
        """Parameters of one normalisation of so many features."""
        return 0 if self.neck == "none" else 2 * width


def half(px: int) -> int:
    """Pixels that a convolution of stride 2 leaves of so many."""
    return (px + 1) // 2
