"""Backbone mobilefacenet: the small network that InsightFace trains as `get_mbf`
(`recognition/arcface_torch/backbones/mobilefacenet.py`)."""

from typing import ClassVar, Literal

from manyfaces.configs.backbones.backbone import Cost, WithNeck, half

MOBILEFACENET_BLOCKS = (1, 4, 6, 2)
MOBILEFACENET_OUT = 512


class MobileFaceNet(WithNeck):
    """For phones, and for experiments on a CPU."""

    kind: Literal["mobilefacenet"] = "mobilefacenet"
    target: ClassVar[str] = "manyfaces.models.backbones.mobilefacenet.MobileFaceNet"
    checkpointed_share: ClassVar[float] = 0.5

    scale: Literal[1, 2, 4] = 2
    """Width multiplier; 2 is InsightFace's `get_mbf`."""

    @classmethod
    def published(cls) -> tuple["MobileFaceNet", ...]:
        return tuple(cls(scale=scale) for scale in (1, 2, 4))

    def cost(self, image_hw: tuple[int, int]) -> Cost:
        layers: list[Cost] = []

        def conv(into: int, out: int, kernel: int, area: int, groups: int = 1) -> None:
            weights = into * out * kernel * kernel // groups
            layers.append(Cost(weights + 3 * out, weights * area, 3 * out * area))

        def without_prelu(out: int, area: int) -> None:
            layers.append(Cost(-out, 0, -out * area))

        def depthwise(into: int, out: int, groups: int, area: int, out_area: int) -> None:
            conv(into, groups, 1, area)
            conv(groups, groups, 3, out_area, groups)
            conv(groups, out, 1, out_area)
            without_prelu(out, out_area)

        height, width = half(image_hw[0]), half(image_hw[1])
        narrow, wide = 64 * self.scale, 128 * self.scale
        conv(3, narrow, 3, height * width)
        conv(narrow, narrow, 3, height * width, groups=64)
        channels = narrow
        for out, groups, blocks in ((narrow, 128, 1), (wide, 256, 2), (wide, 512, 3)):
            before = height * width
            height, width = half(height), half(width)
            depthwise(channels, out, groups, before, height * width)
            channels = out
            for _ in range(MOBILEFACENET_BLOCKS[blocks]):
                depthwise(out, out, min(groups, 256), height * width, height * width)
        area = height * width
        conv(wide, MOBILEFACENET_OUT, 1, area)
        # The global depthwise convolution: one weight a position.
        weights = MOBILEFACENET_OUT * area
        layers.append(Cost(weights + 2 * MOBILEFACENET_OUT, weights, 2 * MOBILEFACENET_OUT))
        last = MOBILEFACENET_OUT * self.embedding_dim
        layers.append(Cost(last + self.neck_parameters(self.embedding_dim), last, 0))
        return Cost(*(sum(column) for column in zip(*layers, strict=True)))
