"""MagFace: a margin by the embedding's norm."""

import math

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target, angle


class MagFace(Margin):
    """ArcFace's margin with an angle m that grows with the embedding's norm a. A regulariser pulls
    easy samples to long norms (arXiv 2103.06627).

    m(a) goes linearly from `low_m` at `low` to `high_m` at `high`; g(a) = 1 / a + a / high^2 (the
    official code's), times `regulariser`. Norms are cut to [low, high]; both terms send gradients
    to the norm.
    """

    def __init__(
        self, low: float, high: float, low_m: float, high_m: float, regulariser: float
    ) -> None:
        self.low, self.high, self.low_m, self.regulariser = low, high, low_m, regulariser
        self.m_per_norm = (high_m - low_m) / (high - low)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        within_B = (norm_B >= self.low) & (norm_B <= self.high)
        norm_B = norm_B.clamp(self.low, self.high)
        m_B = self.low_m + self.m_per_norm * (norm_B - self.low)
        inside_B = theta_B + m_B <= math.pi
        value_B = torch.where(inside_B, torch.cos(theta_B + m_B), cosine_B - m_B * torch.sin(m_B))
        slope_B = torch.where(inside_B, torch.sin(theta_B + m_B) / sine_B, 1.0)
        by_m_B = torch.where(
            inside_B, -torch.sin(theta_B + m_B), -torch.sin(m_B) - m_B * torch.cos(m_B)
        )
        extra_B = self.regulariser * (1 / norm_B + norm_B / self.high**2)
        d_extra_B = self.regulariser * (1 / self.high**2 - 1 / norm_B.square())
        return Target(
            value_B,
            slope_B,
            torch.where(within_B, by_m_B * self.m_per_norm, 0),
            extra_B,
            torch.where(within_B, d_extra_B, 0),
        )
