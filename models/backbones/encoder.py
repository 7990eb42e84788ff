"""A trained backbone with all that it takes to embed images by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs import schema
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.models.backbones.pixels import to_input
from manyfaces.models.backbones.score_heads import ScoreHead, scored


@dataclass(frozen=True)
class Encoder:
    """A trained backbone, which is only looked at: in evaluation mode, and without gradients."""

    backbone: nn.Module
    model: schema.Backbone
    """Its configuration, which says how its inputs are normalised."""
    image_hw: tuple[int, int]
    """Height and width of the images that it was trained on."""
    device: torch.device
    autocast: bool
    """Compute in bfloat16, as it was trained."""
    score_heads: Mapping[str, ScoreHead] = field(default_factory=dict)
    """What gives the scores of an image, such as its `quality`, by their names; most networks have
    none."""
    is_graph: bool = False
    """Whether the backbone is a graph that another program runs, and no network of torch's."""

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def network(self) -> nn.Module:
        """The backbone with its score heads, from images as `to_input` makes them to an `Output`,
        or, without score heads, the backbone."""
        return scored(self.backbone, self.score_heads)

    def to_input(self, images_NHWC: Tensor) -> Tensor:
        """uint8 RGB images [N, height, width, 3] as the backbone takes them: float32 [N, 3, height,
        width]. Those of another size are resized, bilinearly and with antialiasing."""
        images_NCHW = to_input(images_NHWC, self.model)
        if images_NCHW.shape[2:] == self.image_hw:
            return images_NCHW
        return F.interpolate(
            images_NCHW, self.image_hw, mode="bilinear", antialias=True, align_corners=False
        )

    @torch.no_grad()
    def run(self, images_NHWC: Tensor) -> Output:
        """Embeddings [N, D] and scores [N] of uint8 RGB images [N, height, width, 3] on the device,
        of any size, in the precision that the network computes in."""
        images_NCHW = self.to_input(images_NHWC)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return as_output(self.network(images_NCHW))

    def embed(self, images_NHWC: Tensor) -> Tensor:
        """The embeddings `main` of images as `run` takes them: float32 [N, D]."""
        return self.run(images_NHWC).embeddings["main"].float()
