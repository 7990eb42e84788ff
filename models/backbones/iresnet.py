"""IResNet: the pre-activation residual network of ArcFace (arXiv 1801.07698, section 3.1), with
InsightFace's parameter names."""

from torch import Tensor, nn

from manyfaces.configs.backbones.backbone import half
from manyfaces.configs.backbones.iresnet import IRESNET_BLOCKS, IRESNET_WIDTHS
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.neck import build_neck
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.prelu import PReLU


class Block(nn.Module):
    """BatchNorm - 3x3 - BatchNorm - PReLU - 3x3 (strided) - BatchNorm, added to a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x_NCHW))))
        out = self.bn3(self.conv2(out))
        return out + self.downsample(x_NCHW)  # type: ignore[no-any-return]


class IResNet(Backbone):
    """The residual network that maps images [N, 3, height, width], normalised floats, to embeddings
    [N, embedding_dim]; `image_hw` is (height, width) in pixels.

    Raises `KeyError` for a depth that `IRESNET_BLOCKS` does not have.
    """

    def __init__(
        self,
        depth: int,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        neck: str = "batchnorm",
        image_hw: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        width = IRESNET_WIDTHS[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        stages = []
        height, width_px = image_hw
        for out_width, num_blocks in zip(IRESNET_WIDTHS, IRESNET_BLOCKS[depth], strict=True):
            stages.append(
                nn.Sequential(
                    *(
                        Block(out_width if b else width, out_width, 1 if b else 2)
                        for b in range(num_blocks)
                    )
                )
            )
            width, height, width_px = out_width, half(height), half(width_px)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width * height * width_px, embedding_dim)
        self.features = build_neck(neck, embedding_dim)
        # The scale of an embedding is free under a normalised softmax, so InsightFace freezes it.
        if isinstance(self.features, nn.BatchNorm1d):
            self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def embedding_layers(self) -> list[nn.Module]:
        return [self.fc, self.features]

    def list_blocks(self) -> list[nn.Module]:
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def forward(self, images_NCHW: Tensor) -> Output:
        x = self.prelu(self.bn1(self.conv1(images_NCHW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return Output({"main": self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))})
