"""Margins: what is done to the cosine between an embedding and its own class before the softmax.

A margin maps a cosine z = cos(theta) to the target logit f(z), in units of the scale s, and gives f'(z). Both are worked out on the B
target cosines of a batch alone, in float64, so that precision costs nothing and no matrix of angles is ever made.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from manyfaces.configs import schema

# Angles smaller than this count as this: f' grows as 1 / sin(theta) towards theta = 0, where the gradient that it multiplies vanishes.
_SMALLEST_SINE = 1e-6


class Margin(Protocol):
    def __call__(self, cosine_B: Tensor) -> tuple[Tensor, Tensor]:
        """Value f(z) and derivative f'(z) of each target cosine z in [-1, 1], in its dtype; f rises with z everywhere."""


def _angle(cosine_B: Tensor) -> tuple[Tensor, Tensor]:
    """Angle in radians and its sine, kept off zero."""
    sine_B = (1 - cosine_B.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    return torch.atan2(sine_B, cosine_B), sine_B


class ArcFace:
    """cos(theta + m), and cos(theta) - m sin(m) where theta + m exceeds pi (arXiv 1801.07698, equation 3)."""

    def __init__(self, m: float) -> None:
        self.m = m

    def __call__(self, cosine_B: Tensor) -> tuple[Tensor, Tensor]:
        theta_B, sine_B = _angle(cosine_B)
        inside_B = theta_B + self.m <= math.pi
        value_B = torch.where(inside_B, torch.cos(theta_B + self.m), cosine_B - self.m * math.sin(self.m))
        return value_B, torch.where(inside_B, torch.sin(theta_B + self.m) / sine_B, 1.0)


class CosFace:
    """cos(theta) - m (arXiv 1801.09414, equation 4)."""

    def __init__(self, m: float) -> None:
        self.m = m

    def __call__(self, cosine_B: Tensor) -> tuple[Tensor, Tensor]:
        return cosine_B - self.m, torch.ones_like(cosine_B)


class Combined:
    """cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4).

    Where m1 theta + m2 exceeds pi that would rise again; from there the value falls with cos(theta) at slope 1, as ArcFace's does, but
    without a jump: even the worst sample is pulled towards its class.
    """

    def __init__(self, m1: float, m2: float, m3: float) -> None:
        self.m1, self.m2, self.m3 = m1, m2, m3

    def __call__(self, cosine_B: Tensor) -> tuple[Tensor, Tensor]:
        theta_B, sine_B = _angle(cosine_B)
        psi_B = self.m1 * theta_B + self.m2
        edge = math.cos((math.pi - self.m2) / self.m1)  # the cosine at which psi is pi
        value_B = torch.where(psi_B <= math.pi, torch.cos(psi_B), cosine_B - edge - 1) - self.m3
        return value_B, torch.where(psi_B <= math.pi, self.m1 * torch.sin(psi_B) / sine_B, 1.0)


def build(config: schema.Margin) -> Margin:
    """The margin that a configuration names."""
    match config:
        case schema.ArcFaceMargin():
            return ArcFace(config.m)
        case schema.CosFaceMargin():
            return CosFace(config.m)
        case schema.CombinedMargin():
            return Combined(config.m1, config.m2, config.m3)
