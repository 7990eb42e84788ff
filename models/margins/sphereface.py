"""SphereFace: a multiplicative angle."""

import math

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target, angle


class SphereFace(Margin):
    """The target logit is (-1)^k cos(m theta) - 2 k with k = floor(m theta / pi) (arXiv 1704.08063,
    equation 7; any m >= 1 as in arXiv 2109.05565)."""

    def __init__(self, m: float) -> None:
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        k_B = torch.floor(self.m * theta_B / math.pi)
        sign_B = 1 - 2 * torch.remainder(k_B, 2)
        value_B = sign_B * torch.cos(self.m * theta_B) - 2 * k_B
        return Target(value_B, sign_B * self.m * torch.sin(self.m * theta_B) / sine_B)
