"""ArcFace: an additive angle."""

import math
from typing import Literal

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target, angle


class ArcFace(Margin):
    """The target logit is cos(theta + m), and cos(theta) - m sin(m) where theta + m exceeds pi
    (arXiv 1801.07698, equation 3).

    With the gradient `straight_through` it is InsightFace's `losses.py`: cos(theta + m) throughout,
    whose gradient is passed on as if it were cos(theta).
    """

    def __init__(self, m: float, gradient: Literal["exact", "straight_through"] = "exact") -> None:
        self.m, self.gradient = m, gradient

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        if self.gradient == "straight_through":
            return Target(torch.cos(theta_B + self.m), torch.ones_like(cosine_B))
        inside_B = theta_B + self.m <= math.pi
        value_B = torch.where(
            inside_B, torch.cos(theta_B + self.m), cosine_B - self.m * math.sin(self.m)
        )
        return Target(value_B, torch.where(inside_B, torch.sin(theta_B + self.m) / sine_B, 1.0))
