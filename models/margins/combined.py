"""Combined margin: factor and summand of the angle, and summand of the cosine."""

import math

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target, angle


class Combined(Margin):
    """The target logit is cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4).

    Where m1 theta + m2 exceeds pi that would rise again; from there the value falls with cos(theta)
    at slope 1, as ArcFace's does, but without a jump: even the worst sample is pulled towards its
    class.
    """

    def __init__(self, m1: float, m2: float, m3: float) -> None:
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        psi_B = self.m1 * theta_B + self.m2
        edge = math.cos((math.pi - self.m2) / self.m1)  # the cosine at which psi is pi
        value_B = torch.where(psi_B <= math.pi, torch.cos(psi_B), cosine_B - edge - 1) - self.m3
        return Target(
            value_B, torch.where(psi_B <= math.pi, self.m1 * torch.sin(psi_B) / sine_B, 1.0)
        )
