"""Backbone iresnet: the residual network of ArcFace, with InsightFace's shapes
(`recognition/arcface_torch/backbones/iresnet.py`)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.backbones.backbone import Cost, WithNeck, half
from manyfaces.configs.node import RESULTS

IRESNET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
IRESNET_WIDTHS = (64, 128, 256, 512)


class IResNet(WithNeck):
    """The residual network that most published face models have."""

    kind: Literal["iresnet"] = "iresnet"
    target: ClassVar[str] = "manyfaces.models.backbones.iresnet.IResNet"
    # What is left is each block's input, and the inside of one block at a time.
    checkpointed_share: ClassVar[float] = 0.5

    depth: Literal[18, 34, 50, 100, 200] = 50
    """Number of layers, as the published models are named: IResNet-50, IResNet-100."""
    dropout: Annotated[float, Field(ge=0, lt=1), RESULTS] = 0.0
    """Before the last linear layer."""

    @classmethod
    def published(cls) -> tuple["IResNet", ...]:
        return tuple(cls(depth=depth) for depth in (18, 34, 50, 100, 200))

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        area, (height, width) = image_hw[0] * image_hw[1], image_hw
        channels = IRESNET_WIDTHS[0]
        parameters = 27 * channels + 3 * channels  # stem convolution, BatchNorm, PReLU
        multiply_adds = 27 * channels * area
        # The image, and what the stem's BatchNorm and PReLU are given; its output is counted with
        # the first block.
        activations = (3 + 2 * channels) * area
        for out, num_blocks in zip(IRESNET_WIDTHS, IRESNET_BLOCKS[self.depth], strict=True):
            for block in range(num_blocks):
                if block == 0:
                    height, width = half(height), half(width)
                out_area = height * width
                conv1, conv2 = 9 * channels * out, 9 * out * out
                parameters += conv1 + conv2 + 2 * channels + 5 * out
                multiply_adds += conv1 * area + conv2 * out_area
                # The block's input and what its layers are given; a shortcut with a convolution
                # has a BatchNorm of its own.
                activations += (2 * channels + 3 * out) * area
                activations += (2 if block == 0 else 1) * out * out_area
                if block == 0:
                    parameters += channels * out + 2 * out
                    multiply_adds += channels * out * out_area
                channels, area = out, out_area
        flat, dim = channels * area, self.embedding_dim
        parameters += 2 * channels + flat * dim + dim + self.neck_parameters(dim)
        return Cost(parameters, multiply_adds + flat * dim, activations + 2 * flat)
