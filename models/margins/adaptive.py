"""Margins that look at more than the own class's cosine: the embedding's norm, or how far training
is."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.margins.margin import (
    ArcFace,
    Bend,
    Margin,
    State,
    Target,
    above,
    angle,
    mean,
    number,
)


class AdaFace(Margin):
    """cos(theta + g_angle) - g_add, where an image of high quality gets the harder margin (arXiv
    2204.00964).

    Quality is the embedding's norm, cut to [0.001, 100], against a running mean and standard
    deviation of the norms of global batches: q = ((norm - mean) / std * h) cut to [-1, 1], g_angle
    = -m q, g_add = m q + m. No gradient goes through the norm.
    """

    _EPS = 1e-3  # of the official code: added to std, and kept between theta + g_angle and 0 or pi

    def __init__(self, m: float, h: float, momentum: float) -> None:
        super().__init__()
        self.m, self.h, self.momentum = m, h, momentum
        self.state = {"norm_mean": number(20.0), "norm_std": number(100.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        norm_B, count = norm_B.clamp(0.001, 100), valid_B.sum()
        center = mean(norm_B, valid_B)
        std = torch.sqrt(
            torch.where(valid_B, (norm_B - center).square(), 0).sum() / (count - 1).clamp(min=1)
        )
        return {
            name: torch.where(
                count > least,
                new * self.momentum + self.state[name] * (1 - self.momentum),
                self.state[name],
            )
            for name, new, least in (("norm_mean", center, 0), ("norm_std", std, 1))
        }

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


class MagFace(Margin):
    """ArcFace whose m grows with the embedding's norm a, and a regulariser that pulls easy samples
    to long norms (arXiv 2103.06627).

    m(a) goes linearly from `low_m` at `low` to `high_m` at `high`; g(a) = 1 / a + a / high^2 (the
    official code's), times `regulariser`. Norms are cut to [low, high]; both send gradients to the
    norm.
    """

    def __init__(
        self, low: float, high: float, low_m: float, high_m: float, regulariser: float
    ) -> None:
        super().__init__()
        self.low, self.high, self.low_m, self.regulariser = low, high, low_m, regulariser
        self.per_norm = (high_m - low_m) / (high - low)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        within_B, norm_B = (
            (norm_B >= self.low) & (norm_B <= self.high),
            norm_B.clamp(self.low, self.high),
        )
        m_B = self.low_m + self.per_norm * (norm_B - self.low)
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
            torch.where(within_B, by_m_B * self.per_norm, 0),
            extra_B,
            torch.where(within_B, d_extra_B, 0),
        )


class CurricularFace(ArcFace):
    """ArcFace, and a class j that is nearer than cos(theta + m) allows counts as z_j (t + z_j)
    (arXiv 2004.00288).

    t is a running mean of the target cosines of global batches, from 0 on: hard classes weigh
    little at first, and more and more.
    """

    looks_first = True
    largest_logit = 2.0

    def __init__(self, m: float, momentum: float) -> None:
        super().__init__(m)
        self.momentum = momentum
        self.state = {"t": number(0.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        assert cosine_B is not None
        t = self.state["t"]
        new = self.momentum * mean(cosine_B, valid_B) + (1 - self.momentum) * t
        return {
            "t": torch.where(valid_B.any() & new.isfinite(), new, t)
        }  # NaN would spread to all samples before the step is off

    def bend(self, cosine_B: Tensor | None) -> Bend:
        assert cosine_B is not None
        threshold_B = torch.cos(angle(cosine_B.clamp(-1, 1))[0] + self.m).nan_to_num(
            nan=2.0
        )  # of a step that will be called off
        return _Curriculum(threshold_B.float()[:, None], self.state["t"].float())


class _Curriculum(NamedTuple):
    threshold: Tensor
    t: Tensor

    def logit(self, cosines: Tensor) -> Tensor:
        return cosines.addcmul_(cosines, self._turned(cosines)[0])

    def both(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        turned, hard = self._turned(cosines)
        slopes = hard.mul_(cosines).add_(turned).add_(1)
        return cosines.addcmul_(cosines, turned), slopes

    def _turned(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """hard (t + z - 1), which times z is added to z, and hard."""
        hard = above(cosines, self.threshold)
        return (cosines + (self.t - 1)).mul_(hard), hard

    def of(self, samples_m: Tensor) -> Bend:
        return self._replace(threshold=self.threshold[samples_m, 0])
