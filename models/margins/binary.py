"""Losses that ask of every class by itself whether the face is its own, with one threshold for
all."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Bend, Margin, State, Target, number


class _Biased(Margin):
    """A logistic loss for each class, whose logits share a learnt bias: one threshold for all
    pairs.

    The bias moves by SGD with the rows' learning rate and momentum, and does not decay.
    """

    def __init__(self, bias: float, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.state = {"bias": number(bias), "bias_momentum": number(0.0)}

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        moved = momentum * self.state["bias_momentum"] + d_bias
        return {"bias": self.state["bias"] - lr * moved, "bias_momentum": moved}

    def offset(self) -> Tensor:
        """The bias in units of the scale."""
        return self.state["bias"] / self.scale


class SphereFace2(_Biased):
    """Binary classification of every pair (arXiv 2108.01513, equation 5), r being the head's scale:

    weight / r (balance log(1 + exp(-r (g(z_y) - m) - b)) + (1 - balance) sum_j log(1 + exp(r
    (g(z_j) + m) + b))) with g(z) = 2 ((z + 1) / 2)^t - 1. The bias starts where targets and others,
    all at right angles, pull alike (the official code's).
    """

    def __init__(
        self, m: float, balance: float, t: float, weight: float, scale: float, num_classes: int
    ) -> None:
        z = balance / ((1 - balance) * max(num_classes - 1, 1))
        own, others = (scale * (2 * 0.5**t - 1 + shift) for shift in (-m, m))
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - others))
        # The same root of a quadratic, twice: each form cancels where the other does not.
        start = (
            math.log(2 * z) - others - math.log(1 - z + root)
            if z < 1
            else math.log(z - 1 + root) - math.log(2) - own
        )
        super().__init__(start, scale)
        self.m, self.t = m, t
        self.binary = weight * balance / scale, weight * (1 - balance) / scale

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        half_B = (cosine_B + 1) / 2
        return Target(
            2 * half_B**self.t - 1 - self.m + self.offset(), self.t * half_B ** (self.t - 1)
        )

    def bend(self, cosine_B: Tensor | None) -> Bend:
        return _Power(self.t, (self.offset() + self.m - 1).float())


class _Power(NamedTuple):
    t: float
    offset: Tensor

    def logit(self, cosines: Tensor) -> Tensor:
        half = cosines.mul_(0.5).add_(0.5).clamp_(min=0)
        return torch.add(self.offset, half.pow_(self.t), alpha=2, out=half)

    def both(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        half = cosines.mul_(0.5).add_(0.5).clamp_(min=0)
        slopes = half ** (self.t - 1)
        return torch.add(self.offset, half.mul_(slopes), alpha=2, out=half), slopes.mul_(self.t)

    def of(self, samples_m: Tensor) -> Bend:
        return self


class UniFace(_Biased):
    """Unified cross entropy: log(1 + exp(b - s (z_y - m))) + balance sum_j log(1 + exp(s z_j - b))
    (Zhou et al., ICCV 2023).

    b starts at log(10 C), as the official code has it; here its negative is the bias.
    """

    def __init__(self, m: float, balance: float, scale: float, num_classes: int) -> None:
        super().__init__(-math.log(10 * num_classes), scale)
        self.m = m
        self.binary = 1.0, balance

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B - self.m + self.offset(), torch.ones_like(cosine_B))

    def bend(self, cosine_B: Tensor | None) -> Bend:
        return _Offset(self.offset().float())


class _Offset(NamedTuple):
    offset: Tensor

    def logit(self, cosines: Tensor) -> Tensor:
        return cosines.add_(self.offset)

    def both(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        return cosines.add_(self.offset), cosines.new_ones(())

    def of(self, samples_m: Tensor) -> Bend:
        return self
