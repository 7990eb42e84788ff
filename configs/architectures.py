"""Backbone shapes as InsightFace's `recognition/arcface_torch/backbones` defines them, with their
arithmetic.

The plan reads these without torch; `manyfaces.models` builds the modules from the same numbers. A
multiply-add counts once, as in the published tables (IResNet-50 6.3 G, IResNet-100 12.1 G,
ViT-T/S/B/L 1.5 / 5.7 / 11.4 / 25.3 G at 112 x 112).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

IRESNET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
IRESNET_WIDTHS = (64, 128, 256, 512)

MOBILEFACENET_BLOCKS = (1, 4, 6, 2)
MOBILEFACENET_OUT = 512


@dataclass(frozen=True)
class ViTShape:
    width: int
    depth: int
    heads: int = 8
    patch_px: int = 9
    mlp_ratio: int = 4


ViTSize = Literal["tiny", "small", "base", "large", "huge"]
VIT: dict[str, ViTShape] = {
    "tiny": ViTShape(256, 12),
    "small": ViTShape(512, 12),
    "base": ViTShape(512, 24),
    "large": ViTShape(768, 24),
    "huge": ViTShape(1024, 48),
}


class Cost(NamedTuple):
    """What one backbone costs: all parameters, multiply-adds of one image's forward pass, and
    activation elements kept for backward."""

    parameters: int
    multiply_adds: int
    activations: int


def _half(px: int) -> int:
    return (px + 1) // 2


def iresnet_cost(depth: int, image_px: int, embedding_dim: int) -> Cost:
    px = image_px
    in_width = IRESNET_WIDTHS[0]
    parameters = 27 * in_width + 3 * in_width  # stem convolution, BatchNorm, PReLU
    multiply_adds = 27 * in_width * px * px
    activations = 3 * in_width * px * px
    for width, num_blocks in zip(IRESNET_WIDTHS, IRESNET_BLOCKS[depth], strict=True):
        for block in range(num_blocks):
            out_px = _half(px) if block == 0 else px
            conv1, conv2 = 9 * in_width * width, 9 * width * width
            parameters += conv1 + conv2 + 2 * in_width + 5 * width
            multiply_adds += conv1 * px * px + conv2 * out_px * out_px
            activations += (2 * in_width + 3 * width) * px * px + 2 * width * out_px * out_px
            if block == 0:
                parameters += in_width * width + 2 * width
                multiply_adds += in_width * width * out_px * out_px
            in_width, px = width, out_px
    flat = in_width * px * px
    parameters += 2 * in_width + flat * embedding_dim + embedding_dim + 2 * embedding_dim
    return Cost(parameters, multiply_adds + flat * embedding_dim, activations + flat)


def mobilefacenet_cost(scale: int, image_px: int, embedding_dim: int) -> Cost:
    parameters = multiply_adds = activations = 0

    def conv(
        in_width: int, width: int, kernel: int, px: int, groups: int = 1, prelu: bool = True
    ) -> None:
        nonlocal parameters, multiply_adds, activations
        weights = in_width * width * kernel * kernel // groups
        parameters += weights + (3 if prelu else 2) * width
        multiply_adds += weights * px * px
        activations += (3 if prelu else 2) * width * px * px

    def depthwise(in_width: int, width: int, groups: int, px: int, out_px: int) -> None:
        conv(in_width, groups, 1, px)
        conv(groups, groups, 3, out_px, groups)
        conv(groups, width, 1, out_px, prelu=False)

    px = _half(image_px)
    narrow, wide = 64 * scale, 128 * scale
    conv(3, narrow, 3, px)
    conv(narrow, narrow, 3, px, groups=64)
    in_width = narrow
    for width, groups, blocks in ((narrow, 128, 1), (wide, 256, 2), (wide, 512, 3)):
        depthwise(in_width, width, groups, px, _half(px))
        px, in_width = _half(px), width
        for _ in range(MOBILEFACENET_BLOCKS[blocks]):
            depthwise(width, width, min(groups, 256), px, px)
    conv(wide, MOBILEFACENET_OUT, 1, px)
    conv(MOBILEFACENET_OUT, MOBILEFACENET_OUT, px, 1, MOBILEFACENET_OUT, prelu=False)
    parameters += MOBILEFACENET_OUT * embedding_dim + 2 * embedding_dim
    return Cost(parameters, multiply_adds + MOBILEFACENET_OUT * embedding_dim, activations)


def vit_cost(size: str, image_px: int, embedding_dim: int) -> Cost:
    shape = VIT[size]
    width, tokens = shape.width, (image_px // shape.patch_px) ** 2
    patch = 3 * shape.patch_px**2
    block = (4 + 2 * shape.mlp_ratio) * width * width
    parameters = patch * width + width + tokens * width + width  # patches, positions, mask token
    parameters += shape.depth * (block + (2 * 2 + 1 + shape.mlp_ratio + 1) * width) + 2 * width
    parameters += tokens * width * width + 2 * width + width * embedding_dim + 2 * embedding_dim
    multiply_adds = tokens * patch * width + shape.depth * (
        tokens * block + 2 * tokens * tokens * width
    )
    multiply_adds += tokens * width * width + width * embedding_dim
    activations = (
        shape.depth * tokens * ((8 + 2 * shape.mlp_ratio) * width + 2 * shape.heads * tokens)
    )
    return Cost(parameters, multiply_adds, activations)
