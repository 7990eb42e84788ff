"""Margins: what is done to cosines before they become a loss.

A margin says what becomes of the cosine z = cos(theta) between an embedding and its own class: the
target logit f(z), in units of the scale s, and its derivative. Both are worked out on the B target
cosines of a batch alone, in float64, so that precision costs nothing and no matrix of angles is
ever made. A margin that moves the other classes' cosines as well has a `Bend` for them. The loss is
the softmax cross entropy of these logits; a `binary` margin takes a logistic loss for each class
instead.

Here is what a margin is, and those that need the cosine alone; `adaptive_margins` learn from the
batch, `binary_margins` are no softmax. A margin of one's own is a subclass of `Margin` with
`target`, in any file: `head.margin.kind: custom` takes it from there.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Angles smaller than this count as this: f' grows as 1 / sin(theta) towards theta = 0, where the
# gradient that it multiplies vanishes.
_SMALLEST_SINE = 1e-6

_AWAY = 1e4
"""So much below all others a logit counts as nothing: its exponential is 0 in float32."""

State = dict[str, Tensor]


class Target(NamedTuple):
    """Of B samples, float64 [B]."""

    value_B: Tensor
    """f: the target logit in units of the scale."""
    slope_B: Tensor
    """df / d cosine"""
    by_norm_B: Tensor | None = None
    """df / d |embedding|; None where the norm does not matter, or is taken as given."""
    extra_B: Tensor | None = None
    """Added to the sample's loss."""
    d_extra_B: Tensor | None = None
    """d extra / d |embedding|"""


class Bend(Protocol):
    """What becomes of the cosines with other classes: float32 [B, n], or [m] after `of`. Both
    methods use `cosines` up."""

    def logit(self, cosines: Tensor) -> Tensor:
        """In units of the scale, from -1 to the margin's `largest_logit`; far below where a class
        is to be left out."""

    def both(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """The logit, and d logit / d cosine."""

    def of(self, samples_m: Tensor) -> "Bend":
        """The same for [m] cosines, each of the sample with this number."""


class Margin(ABC):
    """One object for a run. `state` holds running numbers, float64 [], the same on all ranks;
    checkpoints keep them."""

    looks_first = False
    """Whether the bend depends on the target cosines, which then have to be known first: one
    collective more."""
    largest_logit = 1.0
    """Of another class, in units of the scale."""
    binary: tuple[float, float] | None = None
    """Weights of the target's logistic loss and of the others' sum, of a binary loss; None is
    softmax."""

    def __init__(self) -> None:
        self.state: State = {}

    @abstractmethod
    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        """Of target cosines in [-1, 1] and embedding norms, float64 [B]. Ignored samples are among
        them and may be anything finite."""

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        """The state with which this batch is scored; cosines only if the margin looks first. The
        caller keeps it unless the step is off."""
        return self.state

    def bend(self, cosine_B: Tensor | None) -> Bend | None:
        """For this batch; None leaves other classes' cosines as they are."""
        return None

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        """The state after the step, of a binary loss: `d_bias` is the loss's derivative by a number
        added to all logits."""
        return self.state


def angle(cosine_B: Tensor) -> tuple[Tensor, Tensor]:
    """Angle in radians and its sine, kept off zero."""
    sine_B = (1 - cosine_B.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    return torch.atan2(sine_B, cosine_B), sine_B


def above(values: Tensor, threshold: Tensor | float) -> Tensor:
    """1 where `values` are above the threshold, 0 elsewhere, in their dtype: one pass. On CPU
    torch's comparisons that give bool take four times as long, its `where` and `masked_fill` thirty
    times."""
    return torch.gt(values, threshold, out=torch.empty_like(values))


def mean(values_B: Tensor, valid_B: Tensor) -> Tensor:
    """Over valid samples; 0 where there are none."""
    return torch.where(valid_B, values_B, 0).sum() / valid_B.sum().clamp(min=1)


def number(value: float) -> Tensor:
    """For `Margin.state`."""
    return torch.tensor(value, dtype=torch.float64)


class Softmax(Margin):
    """z itself (NormFace, arXiv 1704.06369, equation 7)."""

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B, torch.ones_like(cosine_B))


class ArcFace(Margin):
    """cos(theta + m), and cos(theta) - m sin(m) where theta + m exceeds pi (arXiv 1801.07698,
    equation 3)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        inside_B = theta_B + self.m <= math.pi
        value_B = torch.where(
            inside_B, torch.cos(theta_B + self.m), cosine_B - self.m * math.sin(self.m)
        )
        return Target(value_B, torch.where(inside_B, torch.sin(theta_B + self.m) / sine_B, 1.0))


class StraightThroughArcFace(ArcFace):
    """cos(theta + m) throughout, whose gradient is passed on as if it were cos(theta):
    InsightFace's `losses.py`."""

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(torch.cos(angle(cosine_B)[0] + self.m), torch.ones_like(cosine_B))


class CosFace(Margin):
    """cos(theta) - m (arXiv 1801.09414, equation 4)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B - self.m, torch.ones_like(cosine_B))


class Combined(Margin):
    """cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4).

    Where m1 theta + m2 exceeds pi that would rise again; from there the value falls with cos(theta)
    at slope 1, as ArcFace's does, but without a jump: even the worst sample is pulled towards its
    class.
    """

    def __init__(self, m1: float, m2: float, m3: float) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        psi_B = self.m1 * theta_B + self.m2
        edge = math.cos((math.pi - self.m2) / self.m1)  # the cosine at which psi is pi
        value_B = torch.where(psi_B <= math.pi, torch.cos(psi_B), cosine_B - edge - 1) - self.m3
        return Target(
            value_B, torch.where(psi_B <= math.pi, self.m1 * torch.sin(psi_B) / sine_B, 1.0)
        )


class SphereFace(Margin):
    """(-1)^k cos(m theta) - 2 k with k = floor(m theta / pi) (arXiv 1704.08063, equation 7; any m
    >= 1 as arXiv 2109.05565)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = angle(cosine_B)
        k_B = torch.floor(self.m * theta_B / math.pi)
        sign_B = 1 - 2 * torch.remainder(k_B, 2)
        value_B = sign_B * torch.cos(self.m * theta_B) - 2 * k_B
        return Target(value_B, sign_B * self.m * torch.sin(self.m * theta_B) / sine_B)


class Nothing(Margin):
    """No loss by classes: another stands alone."""

    binary = (0.0, 0.0)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B, torch.ones_like(cosine_B))


class Filter(NamedTuple):
    """Inter-class filtering (Partial FC, arXiv 2203.15565): a class nearer than the threshold is
    taken for the same person under another label, and left out. (InsightFace sets its logit to 0:
    beside exp(s z) as good as nothing.)"""

    threshold: float
    inner: Bend | None

    def logit(self, cosines: Tensor) -> Tensor:
        near = above(cosines, self.threshold)
        return (cosines if self.inner is None else self.inner.logit(cosines)).sub_(
            near, alpha=_AWAY
        )

    def both(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        near = above(cosines, self.threshold)
        logits, slopes = (
            (cosines, cosines.new_ones(())) if self.inner is None else self.inner.both(cosines)
        )
        return logits.sub_(near, alpha=_AWAY), slopes

    def of(self, samples_m: Tensor) -> Bend:
        return self if self.inner is None else self._replace(inner=self.inner.of(samples_m))


def bends(margin: Margin) -> bool:
    """Whether it moves other classes' cosines, or is no softmax."""
    return type(margin).bend is not Margin.bend or margin.binary is not None
