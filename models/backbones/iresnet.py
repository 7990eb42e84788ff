"""IResNet: the pre-activation residual network of ArcFace (arXiv 1801.07698, section 3.1), with
InsightFace's parameter names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manyfaces.configs.backbones.backbone import half
from manyfaces.configs.backbones.iresnet import IRESNET_BLOCKS, IRESNET_WIDTHS
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.neck import build_neck
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.prelu import PReLU

_PARTS = {
    "input_layer.0.": "conv1.",
    "input_layer.1.": "bn1.",
    "input_layer.2.": "prelu.",
    "output_layer.0.": "bn2.",
    "output_layer.3.": "fc.",
    "output_layer.4.": "features.",
}
"""Starts of AdaFace's names before and behind the blocks, and ours."""
_IN_BLOCK = {
    "res_layer.0.": "bn1.",
    "res_layer.1.": "conv1.",
    "res_layer.2.": "bn2.",
    "res_layer.3.": "prelu.",
    "res_layer.4.": "conv2.",
    "res_layer.5.": "bn3.",
    "shortcut_layer.": "downsample.",
}
"""Starts of AdaFace's names within a block, and ours."""


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

    def our_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `Backbone` of AdaFace's and CVLface's `net.py`, which numbers all blocks in one list.

        Its first shortcut takes every second pixel, and its last BatchNorm has no scale and shift:
        here both get the weights with which they do nothing else.
        """
        if "input_layer.0.weight" not in weights:
            return dict(weights)
        names: dict[str, str] = {}
        for layer, blocks in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 1):
            for block in range(len(blocks)):
                names[f"body.{len(names)}."] = f"layer{layer}.{block}."
        ours = {_our_name(name, names): weight for name, weight in weights.items()}
        return self._neutral() | ours

    def _neutral(self) -> dict[str, Tensor]:
        """Weights of the first shortcut and of the last BatchNorm by which these only take every
        second pixel, and only normalise."""
        convolution, norm = "layer1.0.downsample.0.weight", "layer1.0.downsample.1."
        width, num = IRESNET_WIDTHS[0], self.fc.out_features
        ones = torch.ones(width)
        return {
            convolution: torch.eye(width)[:, :, None, None],
            f"{norm}weight": ones,
            f"{norm}bias": torch.zeros(width),
            f"{norm}running_mean": torch.zeros(width),
            # A variance to which nothing is added any more.
            f"{norm}running_var": ones - self.bn2.eps,
            "features.weight": torch.ones(num),
            "features.bias": torch.zeros(num),
        }

    def forward(self, images_NCHW: Tensor) -> Output:
        x = self.prelu(self.bn1(self.conv1(images_NCHW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return Output({"main": self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))})


def _our_name(name: str, blocks: Mapping[str, str]) -> str:
    """Our name for a weight of AdaFace's network, where `blocks` has the starts of theirs and ours
    for each block; another name stays."""
    for theirs, ours in _PARTS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = re.match(r"body\.\d+\.", name)
    if found is None or found[0] not in blocks:
        return name
    inside = name.removeprefix(found[0])
    for theirs, ours in _IN_BLOCK.items():
        if inside.startswith(theirs):
            return blocks[found[0]] + ours + inside.removeprefix(theirs)
    return name
