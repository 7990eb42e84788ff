"""A small network with tokens that can be hidden, for tests; it stands in a file of its own so that
a run can be given it too."""

import torch
from torch import Tensor, nn

from manyfaces.models.backbones.output import Output


class Tokens(nn.Module):
    """Patches of 8 px that see their neighbours and, through the mean, all others. No dropout, no
    normalisation."""

    WIDTH = 7

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.WIDTH, 8, stride=8)
        self.mask_token = nn.Parameter(torch.full((self.WIDTH,), 0.1))
        self.mixed = nn.Linear(self.WIDTH, self.WIDTH)
        self.feature = nn.Linear(self.WIDTH, embedding_dim)

    def forward(self, images_NCHW: Tensor, masked_NT: Tensor | None = None) -> Output:
        x_NTD = self.patches(images_NCHW).flatten(2).transpose(1, 2)
        if masked_NT is not None:
            x_NTD = torch.where(masked_NT[:, :, None], self.mask_token, x_NTD)
        x_NTD = torch.tanh(x_NTD + self.mixed(x_NTD.roll(1, 1)) + x_NTD.mean(1, keepdim=True))
        return Output({"main": self.feature(x_NTD.mean(1))}, x_NTD)
