"""Vision transformer for 112 x 112 faces as InsightFace trains it: 9 px patches, ReLU6, no class
token, random token masking."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.backbones.vit import VIT, ViTShape
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.hugging_face import timm_names
from manyfaces.models.backbones.neck import build_neck
from manyfaces.models.backbones.output import Output

_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"\.attn\.", "."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)
"""Patterns of timm's and InsightFace's names, and ours, applied in turn."""


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): a residual branch is dropped per sample and rescaled."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_NTD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_NTD
        keep = torch.rand(x_NTD.shape[0], 1, 1, device=x_NTD.device) >= self.rate
        return x_NTD * (keep / (1 - self.rate)).to(x_NTD.dtype)


class Block(nn.Module):
    """Self-attention and a perceptron, each normalised before and added to its input."""

    def __init__(self, shape: ViTShape, drop_path: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.proj = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, shape.mlp_ratio * shape.width),
            nn.ReLU6(),
            nn.Linear(shape.mlp_ratio * shape.width, shape.width),
        )
        self.drop_path = DropPath(drop_path)

    def attention(self, x_NTD: Tensor) -> Tensor:
        queries, keys, values = (
            self.qkv(x_NTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        return self.proj(  # type: ignore[no-any-return]
            F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        )

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = x_NTD + self.drop_path(self.attention(self.norm1(x_NTD)))
        return x_NTD + self.drop_path(self.mlp(self.norm2(x_NTD)))  # type: ignore[no-any-return]


class ViT(Backbone):
    """Images [N, 3, height, width], normalised floats, to embeddings [N, embedding_dim] and tokens;
    `image_hw` is (height, width) in pixels. `mask_ratio` of the tokens is hidden in training, a
    fresh choice for each image. With `pool` mean, images may have any other size too."""

    def __init__(
        self,
        size: str,
        embedding_dim: int = 512,
        drop_path: float = 0.1,
        mask_ratio: float = 0.1,
        neck: str = "batchnorm",
        pool: str = "flatten",
        image_hw: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__()
        shape = VIT[size]
        self.grid = image_hw[0] // shape.patch_px, image_hw[1] // shape.patch_px
        """Rows and columns of patches of the images that it is made for."""
        num_tokens = self.grid[0] * self.grid[1]
        self.mask_ratio, self.pool = mask_ratio, pool
        self.patch_embed = nn.Conv2d(3, shape.width, shape.patch_px, stride=shape.patch_px)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, shape.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape, drop_path * i / (shape.depth - 1)) for i in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.feature = nn.Sequential(
            nn.Linear(
                shape.width * (num_tokens if pool == "flatten" else 1), shape.width, bias=False
            ),
            build_neck(neck, shape.width, eps=2e-5),
            nn.Linear(shape.width, embedding_dim, bias=False),
            build_neck(neck, embedding_dim, eps=2e-5),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def embedding_layers(self) -> list[nn.Module]:
        return [self.feature]

    def list_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def our_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """InsightFace's and timm's vision transformers, which have the same names, and Hugging
        Face's, which keep queries, keys and values apart."""
        ours: dict[str, Tensor] = {}
        for name, weight in timm_names(weights).items():
            for theirs, replacement in _NAMES:
                name = re.sub(theirs, replacement, name)
            ours[name] = weight
        return ours

    def forward(self, images_NCHW: Tensor, masked_NT: Tensor | None = None) -> Output:
        """`masked_NT`, bool: these patches are hidden behind the mask token, at their places."""
        maps_NDHW = self.patch_embed(images_NCHW)
        x_NTD = maps_NDHW.flatten(2).transpose(1, 2)
        if masked_NT is not None:
            x_NTD = torch.where(masked_NT[:, :, None], self.mask_token.to(x_NTD.dtype), x_NTD)
        x_NTD = x_NTD + self.positions(*maps_NDHW.shape[2:])
        num_images, num_tokens, width = x_NTD.shape
        num_kept = int(num_tokens * (1 - self.mask_ratio)) if self.training else num_tokens
        if num_kept < num_tokens:
            kept = (
                torch.rand(num_images, num_tokens, device=x_NTD.device)
                .argsort(1)[:, :num_kept, None]
                .expand(-1, -1, width)
            )
            x_NTD = x_NTD.gather(1, kept)
        for block in self.blocks:
            x_NTD = block(x_NTD)
        x_NTD = self.norm(x_NTD)
        mean_ND = x_NTD.mean(1)  # of those that are not hidden
        if num_kept < num_tokens:
            x_NTD = (
                self.mask_token.to(x_NTD.dtype)
                .expand(num_images, num_tokens, width)
                .scatter(1, kept, x_NTD)
            )
        pooled_ND = x_NTD.flatten(1) if self.pool == "flatten" else mean_ND
        return Output({"main": self.feature(pooled_ND)}, x_NTD)

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embeddings of so many rows and columns of patches, [1, T, width]; those of
        another grid than the network's own are interpolated."""
        if (rows, columns) == self.grid:
            return self.pos_embed
        own_1DHW = self.pos_embed.transpose(1, 2).unflatten(2, self.grid).float()
        fitted_1DHW = F.interpolate(
            own_1DHW, (rows, columns), mode="bicubic", antialias=True, align_corners=False
        )
        return fitted_1DHW.flatten(2).transpose(1, 2)
