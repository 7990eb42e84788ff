"""A trained backbone with all that it takes to embed images by it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs import schema
from manyfaces.models.backbones.output import as_output
from manyfaces.models.backbones.pixels import to_input


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

    def __post_init__(self) -> None:
        self.backbone.eval().requires_grad_(False)

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
    def embed(self, images_NHWC: Tensor) -> Tensor:
        """The embeddings `main` of uint8 RGB images [N, height, width, 3] on the device, of any
        size: float32 [N, D]."""
        images_NCHW = self.to_input(images_NHWC)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return as_output(self.backbone(images_NCHW)).embeddings["main"].float()
