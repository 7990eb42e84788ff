"""Margins: what is done to cosines before they become a loss.

A margin says what becomes of the cosine z = cos(theta) between an embedding and its own class: the target logit f(z), in units of the
scale s, and its derivative. Both are worked out on the B target cosines of a batch alone, in float64, so that precision costs nothing and
no matrix of angles is ever made. A margin that moves the other classes' cosines as well has a `Bend` for them. The loss is the softmax
cross entropy of these logits; a `binary` margin takes a logistic loss for each class instead.

A margin of one's own is a subclass of `Margin` with `target`, in any file: `head.margin.kind: custom` takes it from there.
"""

import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError

# Angles smaller than this count as this: f' grows as 1 / sin(theta) towards theta = 0, where the gradient that it multiplies vanishes.
_SMALLEST_SINE = 1e-6

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
    """What becomes of the cosines with other classes: float32 [B, n], or [m] after `of`."""

    def logit(self, cosines: Tensor) -> Tensor:
        """In units of the scale; `cosines` is used up."""

    def slope(self, cosines: Tensor) -> Tensor:
        """d logit / d cosine; `cosines` stays."""

    def of(self, samples_m: Tensor) -> "Bend":
        """The same for [m] cosines, each of the sample with this number."""


class Margin(ABC):
    """One object for a run. `state` holds running numbers, float64 [], the same on all ranks; checkpoints keep them."""

    looks_first = False
    """Whether the bend depends on the target cosines, which then have to be known first: one collective more."""
    largest_logit = 1.0
    """Of another class, in units of the scale."""
    binary: tuple[float, float] | None = None
    """Weights of the target's logistic loss and of the others' sum, of a binary loss; None is softmax."""

    def __init__(self) -> None:
        self.state: State = {}

    @abstractmethod
    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        """Of target cosines in [-1, 1] and embedding norms, float64 [B]. Ignored samples are among them and may be anything finite."""

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        """The state with which this batch is scored; cosines only if the margin looks first. The caller keeps it unless the step is off."""
        return self.state

    def bend(self, cosine_B: Tensor | None) -> Bend | None:
        """For this batch; None leaves other classes' cosines as they are."""
        return None

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        """The state after the step, of a binary loss: `d_bias` is the loss's derivative by a number added to all logits."""
        return self.state


def _angle(cosine_B: Tensor) -> tuple[Tensor, Tensor]:
    """Angle in radians and its sine, kept off zero."""
    sine_B = (1 - cosine_B.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    return torch.atan2(sine_B, cosine_B), sine_B


def _mean(values_B: Tensor, valid_B: Tensor) -> Tensor:
    """Over valid samples; 0 where there are none."""
    return torch.where(valid_B, values_B, 0).sum() / valid_B.sum().clamp(min=1)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Softmax(Margin):
    """z itself (NormFace, arXiv 1704.06369, equation 7)."""

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B, torch.ones_like(cosine_B))


class ArcFace(Margin):
    """cos(theta + m), and cos(theta) - m sin(m) where theta + m exceeds pi (arXiv 1801.07698, equation 3)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = _angle(cosine_B)
        inside_B = theta_B + self.m <= math.pi
        value_B = torch.where(inside_B, torch.cos(theta_B + self.m), cosine_B - self.m * math.sin(self.m))
        return Target(value_B, torch.where(inside_B, torch.sin(theta_B + self.m) / sine_B, 1.0))


class StraightThroughArcFace(ArcFace):
    """cos(theta + m) throughout, whose gradient is passed on as if it were cos(theta): InsightFace's `losses.py`."""

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(torch.cos(_angle(cosine_B)[0] + self.m), torch.ones_like(cosine_B))


class CosFace(Margin):
    """cos(theta) - m (arXiv 1801.09414, equation 4)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B - self.m, torch.ones_like(cosine_B))


class Combined(Margin):
    """cos(m1 theta + m2) - m3 (arXiv 1801.07698, equation 4).

    Where m1 theta + m2 exceeds pi that would rise again; from there the value falls with cos(theta) at slope 1, as ArcFace's does, but
    without a jump: even the worst sample is pulled towards its class.
    """

    def __init__(self, m1: float, m2: float, m3: float) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = _angle(cosine_B)
        psi_B = self.m1 * theta_B + self.m2
        edge = math.cos((math.pi - self.m2) / self.m1)  # the cosine at which psi is pi
        value_B = torch.where(psi_B <= math.pi, torch.cos(psi_B), cosine_B - edge - 1) - self.m3
        return Target(value_B, torch.where(psi_B <= math.pi, self.m1 * torch.sin(psi_B) / sine_B, 1.0))


class SphereFace(Margin):
    """(-1)^k cos(m theta) - 2 k with k = floor(m theta / pi) (arXiv 1704.08063, equation 7; any m >= 1 as arXiv 2109.05565)."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = _angle(cosine_B)
        k_B = torch.floor(self.m * theta_B / math.pi)
        sign_B = 1 - 2 * torch.remainder(k_B, 2)
        value_B = sign_B * torch.cos(self.m * theta_B) - 2 * k_B
        return Target(value_B, sign_B * self.m * torch.sin(self.m * theta_B) / sine_B)


class AdaFace(Margin):
    """cos(theta + g_angle) - g_add, where an image of high quality gets the harder margin (arXiv 2204.00964, equations 12 to 15).

    Quality is the embedding's norm, cut to [0.001, 100], against a running mean and standard deviation of the norms of global batches:
    q = ((norm - mean) / std * h) cut to [-1, 1], g_angle = -m q, g_add = m q + m. No gradient goes through the norm.
    """

    _EPS = 1e-3  # of the official code: added to std, and kept between theta + g_angle and 0 or pi

    def __init__(self, m: float, h: float, momentum: float) -> None:
        super().__init__()
        self.m, self.h, self.momentum = m, h, momentum
        self.state = {"norm_mean": _number(20.0), "norm_std": _number(100.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        norm_B, count = norm_B.clamp(0.001, 100), valid_B.sum()
        mean = _mean(norm_B, valid_B)
        std = torch.sqrt(torch.where(valid_B, (norm_B - mean).square(), 0).sum() / (count - 1).clamp(min=1))
        return {
            name: torch.where(count > least, new * self.momentum + self.state[name] * (1 - self.momentum), self.state[name])
            for name, new, least in (("norm_mean", mean, 0), ("norm_std", std, 1))
        }

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        quality_B = (norm_B.clamp(0.001, 100) - self.state["norm_mean"]) / (self.state["norm_std"] + self._EPS)
        quality_B = (quality_B * self.h).clamp(-1, 1)
        theta_B, sine_B = _angle(cosine_B)
        moved_B = theta_B - self.m * quality_B
        inside_B = (moved_B >= self._EPS) & (moved_B <= math.pi - self._EPS)
        value_B = torch.cos(moved_B.clamp(self._EPS, math.pi - self._EPS)) - self.m * (1 + quality_B)
        return Target(value_B, torch.where(inside_B, torch.sin(moved_B) / sine_B, 0.0))


class MagFace(Margin):
    """ArcFace whose m grows with the embedding's norm a, and a regulariser that pulls easy samples to long norms (arXiv 2103.06627).

    m(a) goes linearly from `low_m` at `low` to `high_m` at `high`; g(a) = 1 / a + a / high^2 (equation 5 and appendix B), times
    `regulariser`. Norms are cut to [low, high]; both send gradients to the norm.
    """

    def __init__(self, low: float, high: float, low_m: float, high_m: float, regulariser: float) -> None:
        super().__init__()
        self.low, self.high, self.low_m, self.regulariser = low, high, low_m, regulariser
        self.per_norm = (high_m - low_m) / (high - low)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        theta_B, sine_B = _angle(cosine_B)
        within_B, norm_B = (norm_B >= self.low) & (norm_B <= self.high), norm_B.clamp(self.low, self.high)
        m_B = self.low_m + self.per_norm * (norm_B - self.low)
        inside_B = theta_B + m_B <= math.pi
        value_B = torch.where(inside_B, torch.cos(theta_B + m_B), cosine_B - m_B * torch.sin(m_B))
        slope_B = torch.where(inside_B, torch.sin(theta_B + m_B) / sine_B, 1.0)
        by_m_B = torch.where(inside_B, -torch.sin(theta_B + m_B), -torch.sin(m_B) - m_B * torch.cos(m_B))
        extra_B = self.regulariser * (1 / norm_B + norm_B / self.high**2)
        d_extra_B = self.regulariser * (1 / self.high**2 - 1 / norm_B.square())
        return Target(value_B, slope_B, torch.where(within_B, by_m_B * self.per_norm, 0), extra_B, torch.where(within_B, d_extra_B, 0))


class CurricularFace(ArcFace):
    """ArcFace, and a class j that is nearer than cos(theta + m) allows counts as z_j (t + z_j) (arXiv 2004.00288, equations 6 to 9).

    t is a running mean of the target cosines of global batches, from 0 on: hard classes weigh little at first, and more and more.
    """

    looks_first = True
    largest_logit = 2.0

    def __init__(self, m: float, momentum: float) -> None:
        super().__init__(m)
        self.momentum = momentum
        self.state = {"t": _number(0.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        assert cosine_B is not None
        t = self.state["t"]
        new = self.momentum * _mean(cosine_B, valid_B) + (1 - self.momentum) * t
        return {"t": torch.where(valid_B.any() & new.isfinite(), new, t)}  # NaN would spread to all samples before the step is off

    def bend(self, cosine_B: Tensor | None) -> Bend:
        assert cosine_B is not None
        return _Curriculum(torch.cos(_angle(cosine_B.clamp(-1, 1))[0] + self.m).float()[:, None], self.state["t"].float())


class _Curriculum(NamedTuple):
    threshold: Tensor
    t: Tensor

    def logit(self, cosines: Tensor) -> Tensor:
        return torch.where(cosines > self.threshold, (cosines + self.t).mul_(cosines), cosines)

    def slope(self, cosines: Tensor) -> Tensor:
        return torch.where(cosines > self.threshold, torch.add(self.t, cosines, alpha=2), 1.0)

    def of(self, samples_m: Tensor) -> Bend:
        return self._replace(threshold=self.threshold[samples_m, 0])


class _Biased(Margin):
    """A logistic loss for each class, whose logits share a learnt bias: one threshold for all pairs.

    The bias moves by SGD with the rows' learning rate and momentum, and does not decay.
    """

    def __init__(self, bias: float, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.state = {"bias": _number(bias), "bias_momentum": _number(0.0)}

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        moved = momentum * self.state["bias_momentum"] + d_bias
        return {"bias": self.state["bias"] - lr * moved, "bias_momentum": moved}

    def offset(self) -> Tensor:
        """The bias in units of the scale."""
        return self.state["bias"] / self.scale


class SphereFace2(_Biased):
    """Binary classification of every pair (arXiv 2108.01513, equations 5 and 6), r being the head's scale:

    weight / r (balance log(1 + exp(-r (g(z_y) - m) - b)) + (1 - balance) sum_j log(1 + exp(r (g(z_j) + m) + b))) with
    g(z) = 2 ((z + 1) / 2)^t - 1. The bias starts where targets and others, all at right angles, pull alike (the official code's).
    """

    def __init__(self, m: float, balance: float, t: float, weight: float, scale: float, num_classes: int) -> None:
        z = balance / ((1 - balance) * max(num_classes - 1, 1))
        own, others = (scale * (2 * 0.5**t - 1 + shift) for shift in (-m, m))
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - others))
        # The same root of a quadratic, twice: each form cancels where the other does not.
        start = math.log(2 * z) - others - math.log(1 - z + root) if z < 1 else math.log(z - 1 + root) - math.log(2) - own
        super().__init__(start, scale)
        self.m, self.t = m, t
        self.binary = weight * balance / scale, weight * (1 - balance) / scale

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        half_B = (cosine_B + 1) / 2
        return Target(2 * half_B**self.t - 1 - self.m + self.offset(), self.t * half_B ** (self.t - 1))

    def bend(self, cosine_B: Tensor | None) -> Bend:
        return _Power(self.t, (self.offset() + self.m - 1).float())


class _Power(NamedTuple):
    t: float
    offset: Tensor

    def logit(self, cosines: Tensor) -> Tensor:
        return torch.add(self.offset, cosines.add_(1).mul_(0.5).clamp_(min=0).pow_(self.t), alpha=2)

    def slope(self, cosines: Tensor) -> Tensor:
        return (cosines + 1).mul_(0.5).clamp_(min=0).pow_(self.t - 1).mul_(self.t)

    def of(self, samples_m: Tensor) -> Bend:
        return self


class Nothing(Margin):
    """No loss by classes: another stands alone."""

    binary = (0.0, 0.0)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B, torch.ones_like(cosine_B))


class UniFace(_Biased):
    """Unified cross entropy: log(1 + exp(b - s (z_y - m))) + balance sum_j log(1 + exp(s z_j - b)) (ICCV 2023, Zhou et al., equation 9).

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

    def slope(self, cosines: Tensor) -> Tensor:
        return torch.ones((), device=cosines.device)

    def of(self, samples_m: Tensor) -> Bend:
        return self


class Filter(NamedTuple):
    """Inter-class filtering (Partial FC, arXiv 2203.15565): a class nearer than the threshold is taken for the same person under another
    label, and left out. (InsightFace sets its logit to 0: beside exp(s z) as good as nothing.)"""

    threshold: float
    inner: Bend | None

    def logit(self, cosines: Tensor) -> Tensor:
        near = cosines > self.threshold
        return (cosines if self.inner is None else self.inner.logit(cosines)).masked_fill_(near, -math.inf)

    def slope(self, cosines: Tensor) -> Tensor:
        return cosines.new_ones(()) if self.inner is None else self.inner.slope(cosines)

    def of(self, samples_m: Tensor) -> Bend:
        return self if self.inner is None else self._replace(inner=self.inner.of(samples_m))


def bends(margin: Margin) -> bool:
    """Whether it moves other classes' cosines, or is no softmax."""
    return type(margin).bend is not Margin.bend or margin.binary is not None


def build(config: schema.Margin, scale: float, num_classes: int) -> Margin:
    """The margin that a configuration names. Raises `UserError` for a file of one's own that does not hold it."""
    match config:
        case schema.SoftmaxMargin():
            return Softmax()
        case schema.ArcFaceMargin():
            return ArcFace(config.m) if config.gradient == "exact" else StraightThroughArcFace(config.m)
        case schema.CosFaceMargin():
            return CosFace(config.m)
        case schema.CombinedMargin():
            return Combined(config.m1, config.m2, config.m3)
        case schema.SphereFaceMargin():
            return SphereFace(config.m)
        case schema.AdaFaceMargin():
            return AdaFace(config.m, config.h, config.momentum)
        case schema.MagFaceMargin():
            return MagFace(config.low, config.high, config.low_m, config.high_m, config.regulariser)
        case schema.CurricularFaceMargin():
            return CurricularFace(config.m, config.momentum)
        case schema.SphereFace2Margin():
            return SphereFace2(config.m, config.balance, config.t, config.weight, scale, num_classes)
        case schema.UniFaceMargin():
            return UniFace(config.m, config.balance, scale, num_classes)
        case schema.NoMargin():
            return Nothing()
        case schema.CustomMargin():
            return _custom(config)


def _custom(config: schema.CustomMargin) -> Margin:
    path, name = Path(config.file), config.name
    where = f"head.margin: {path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file; every worker must see it")
    spec = importlib.util.spec_from_file_location(f"manyfaces_margin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        margin = getattr(module, name)(**config.parameters)
    except Exception as error:  # whatever a person's own code does
        raise UserError(f"{where}: {name}({', '.join(config.parameters)}): {type(error).__name__}: {error}") from error
    if not isinstance(margin, Margin):
        raise UserError(f"{where}: {name} is a {type(margin).__name__}; derive it from manyfaces.models.margins.Margin")
    return margin
