"""SphereFace2: one binary problem a class."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.margins.logistic import LogisticMargin
from manyfaces.models.margins.margin import NegativeTransform, Target


class SphereFace2(LogisticMargin):
    """Binary classification of every pair (arXiv 2108.01513, equation 5), r being the head's scale:

    weight / r (balance log(1 + exp(-r (g(z_y) - m) - b)) + (1 - balance) sum_j log(1 + exp(r
    (g(z_j) + m) + b))) with g(z) = 2 ((z + 1) / 2)^t - 1. The bias b starts where the gradients of
    targets and others, all at right angles, cancel (the official code's).
    """

    def __init__(self, m: float, balance: float, t: float, weight: float) -> None:
        self.m, self.balance, self.t, self.weight = m, balance, t, weight

    def begin(self, scale: float, num_classes: int) -> None:
        z = self.balance / ((1 - self.balance) * max(num_classes - 1, 1))
        right_angle = 2 * 0.5**self.t - 1
        own, others = scale * (right_angle - self.m), scale * (right_angle + self.m)
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - others))
        # The same root of a quadratic, twice: each form cancels where the other does not.
        if z < 1:
            bias = math.log(2 * z) - others - math.log(1 - z + root)
        else:
            bias = math.log(z - 1 + root) - math.log(2) - own
        self.start_bias(bias, scale)
        weight, balance = self.weight, self.balance
        self.binary = weight * balance / scale, weight * (1 - balance) / scale

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        half_B = (cosine_B + 1) / 2
        return Target(
            2 * half_B**self.t - 1 - self.m + self.offset(), self.t * half_B ** (self.t - 1)
        )

    def negative_transform(self, cosine_B: Tensor | None) -> NegativeTransform:
        return _Power(self.t, (self.offset() + self.m - 1).float())


class _Power(NamedTuple):
    """z becomes 2 ((z + 1) / 2)^t + offset."""

    t: float
    offset: Tensor

    def logits(self, cosines: Tensor) -> Tensor:
        half = cosines.mul_(0.5).add_(0.5).clamp_(min=0)
        return torch.add(self.offset, half.pow_(self.t), alpha=2, out=half)

    def logits_and_slopes(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        half = cosines.mul_(0.5).add_(0.5).clamp_(min=0)
        slopes = half ** (self.t - 1)
        return torch.add(self.offset, half.mul_(slopes), alpha=2, out=half), slopes.mul_(self.t)

    def for_samples(self, samples_m: Tensor) -> NegativeTransform:
        return self
