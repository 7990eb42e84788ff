"""MobileFaceNet (arXiv 1804.07573) in the shape that InsightFace trains as `get_mbf`: twice as
wide, 0.45 G multiply-adds."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from manyfaces.configs.backbones.backbone import half
from manyfaces.configs.backbones.mobilefacenet import MOBILEFACENET_BLOCKS, MOBILEFACENET_OUT
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.neck import build_neck
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.prelu import PReLU

_STRIDED = {2: 2, 4: 3 + sum(MOBILEFACENET_BLOCKS[1:2]), 6: 4 + sum(MOBILEFACENET_BLOCKS[1:3])}
"""InsightFace's numbers of the strided blocks, each followed by a list of blocks of its width, and
ours, where the blocks themselves follow."""
_HEAD = {
    "conv_sep.layers.": f"layers.{5 + sum(MOBILEFACENET_BLOCKS[1:])}.",
    "features.layers.0.layers.": "pool.",
    "features.layers.2.": "fc.",
    "features.layers.3.": "features.",
}
"""Starts of InsightFace's names behind the blocks, and ours."""


def conv_bn(
    in_width: int,
    width: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    prelu: bool = True,
) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_width, width, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]
    return nn.Sequential(*layers, *([PReLU(width)] if prelu else []))


class Bottleneck(nn.Module):
    """1x1 up - 3x3 depthwise - 1x1 linear; added to its input where the stride is 1."""

    def __init__(self, in_width: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.layers = nn.Sequential(
            conv_bn(in_width, groups, 1),
            conv_bn(groups, groups, 3, stride, 1, groups=groups),
            conv_bn(groups, width, 1, prelu=False),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(x_NCHW)
        return x_NCHW + out if self.residual else out


class MobileFaceNet(Backbone):
    """Images [N, 3, height, width], normalised floats, to embeddings [N, embedding_dim]; `image_hw`
    is (height, width) in pixels, `scale` 2 is `get_mbf`, 1 the narrower original."""

    def __init__(
        self,
        scale: int = 2,
        embedding_dim: int = 512,
        neck: str = "batchnorm",
        image_hw: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        layers: list[nn.Module] = [
            conv_bn(3, narrow, 3, 2, 1),
            conv_bn(narrow, narrow, 3, 1, 1, groups=64),
        ]
        in_width, height, width_px = narrow, half(image_hw[0]), half(image_hw[1])
        for width, groups, blocks in ((narrow, 128, 1), (wide, 256, 2), (wide, 512, 3)):
            layers.append(Bottleneck(in_width, width, groups, 2))
            layers += [
                Bottleneck(width, width, min(groups, 256), 1)
                for _ in range(MOBILEFACENET_BLOCKS[blocks])
            ]
            in_width, height, width_px = width, half(height), half(width_px)
        self.layers = nn.Sequential(*layers, conv_bn(wide, MOBILEFACENET_OUT, 1))
        # Global depthwise convolution: every position of the last map has its own weight.
        self.pool = conv_bn(
            MOBILEFACENET_OUT,
            MOBILEFACENET_OUT,
            (height, width_px),
            groups=MOBILEFACENET_OUT,
            prelu=False,
        )
        self.fc = nn.Linear(MOBILEFACENET_OUT, embedding_dim, bias=False)
        self.features = build_neck(neck, embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def embedding_layers(self) -> list[nn.Module]:
        return [self.fc, self.features]

    def list_blocks(self) -> list[nn.Module]:
        return [layer for layer in self.layers if isinstance(layer, Bottleneck)]

    def our_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """InsightFace's `get_mbf`, whose blocks of one width stand in a list within the list of
        layers, and whose last convolution and head have names of their own."""
        return {_our_name(name): weight for name, weight in weights.items()}

    def forward(self, images_NCHW: Tensor) -> Output:
        x = self.pool(self.layers(images_NCHW)).flatten(1)
        return Output({"main": self.features(self.fc(x))})


def _our_name(name: str) -> str:
    """Our name for a weight of InsightFace's `get_mbf`; another name stays."""
    for theirs, ours in _HEAD.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if found := re.fullmatch(r"layers\.([01])\.layers\.(.*)", name):
        return f"layers.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"layers\.([246])\.layers\.(\d)\.layers\.(.*)", name):
        return f"layers.{_STRIDED[int(found[1])]}.layers.{found[2]}.{found[3]}"
    if found := re.fullmatch(r"layers\.([357])\.layers\.(\d+)\.layers\.(\d)\.layers\.(.*)", name):
        place = _STRIDED[int(found[1]) - 1] + 1 + int(found[2])
        return f"layers.{place}.layers.{found[3]}.{found[4]}"
    return name
