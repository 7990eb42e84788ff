"""AdaFace: a margin by image quality."""

import math

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, State, Target, angle, mean, number


class AdaFace(Margin):
    """The target logit is cos(theta + g_angle) - g_add, where an image of high quality gets the
    harder margin (arXiv 2204.00964).

    Quality is the embedding's norm, cut to [0.001, 100], against a running mean and standard
    deviation of the norms of global batches: q = ((norm - mean) / std * h) cut to [-1, 1], g_angle
    = -m q, g_add = m q + m. No gradient goes through the norm.
    """

    _EPS = 1e-3
    """The official code's: it is added to std, and kept between theta + g_angle and 0 or pi."""

    def __init__(self, m: float, h: float, momentum: float) -> None:
        self.m, self.h, self.momentum = m, h, momentum
        self.state = {"norm_mean": number(20.0), "norm_std": number(100.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        norm_B, count = norm_B.clamp(0.001, 100), valid_B.sum()
        center = mean(norm_B, valid_B)
        std = torch.sqrt(
            torch.where(valid_B, (norm_B - center).square(), 0).sum() / (count - 1).clamp(min=1)
        )
        return {
            "norm_mean": self._averaged("norm_mean", center, count > 0),
            "norm_std": self._averaged("norm_std", std, count > 1),
        }

    def _averaged(self, name: str, new: Tensor, is_known: Tensor) -> Tensor:
        old = self.state[name]
        return torch.where(is_known, new * self.momentum + old * (1 - self.momentum), old)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        quality_B = (norm_B.clamp(0.001, 100) - self.state["norm_mean"]) / (
            self.state["norm_std"] + self._EPS
        )
        quality_B = (quality_B * self.h).clamp(-1, 1)
        theta_B, sine_B = angle(cosine_B)
        moved_B = theta_B - self.m * quality_B
        inside_B = (moved_B >= self._EPS) & (moved_B <= math.pi - self._EPS)
        value_B = torch.cos(moved_B.clamp(self._EPS, math.pi - self._EPS)) - self.m * (
            1 + quality_B
        )
        return Target(value_B, torch.where(inside_B, torch.sin(moved_B) / sine_B, 0.0))
