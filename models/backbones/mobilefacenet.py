"""MobileFaceNet (arXiv 1804.07573) in the shape that InsightFace trains as `get_mbf`: twice as
wide, 0.45 G multiply-adds."""

from torch import Tensor, nn

from manyfaces.configs.architectures import MOBILEFACENET_BLOCKS, MOBILEFACENET_OUT
from manyfaces.models.backbones.prelu import PReLU


def conv_bn(
    in_width: int,
    width: int,
    kernel: int,
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


class MobileFaceNet(nn.Module):
    """Images [N, 3, P, P] float to embeddings [N, D]; `scale` 2 is `get_mbf`, 1 the narrower
    original."""

    def __init__(self, scale: int = 2, image_px: int = 112, embedding_dim: int = 512) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        layers: list[nn.Module] = [
            conv_bn(3, narrow, 3, 2, 1),
            conv_bn(narrow, narrow, 3, 1, 1, groups=64),
        ]
        in_width, px = narrow, (image_px + 1) // 2
        for width, groups, blocks in ((narrow, 128, 1), (wide, 256, 2), (wide, 512, 3)):
            layers.append(Bottleneck(in_width, width, groups, 2))
            layers += [
                Bottleneck(width, width, min(groups, 256), 1)
                for _ in range(MOBILEFACENET_BLOCKS[blocks])
            ]
            in_width, px = width, (px + 1) // 2
        self.layers = nn.Sequential(*layers, conv_bn(wide, MOBILEFACENET_OUT, 1))
        # Global depthwise convolution: every position of the last map has its own weight.
        self.pool = conv_bn(
            MOBILEFACENET_OUT, MOBILEFACENET_OUT, px, groups=MOBILEFACENET_OUT, prelu=False
        )
        self.fc = nn.Linear(MOBILEFACENET_OUT, embedding_dim, bias=False)
        self.features = nn.BatchNorm1d(embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.features(self.fc(self.pool(self.layers(images_NCHW)).flatten(1)))  # type: ignore[no-any-return]
