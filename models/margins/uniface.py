"""UniFace: one threshold for all pairs."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.margins.logistic import LogisticMargin
from manyfaces.models.margins.margin import NegativeTransform, Target


class UniFace(LogisticMargin):
    """Unified cross entropy: log(1 + exp(b - s (z_y - m))) + balance sum_j log(1 + exp(s z_j - b))
    (Zhou et al., ICCV 2023).

    b starts at log(10 C), as the official code has it; here its negative is the bias.
    """

    def __init__(self, m: float, balance: float) -> None:
        self.m = m
        self.binary = 1.0, balance

    def begin(self, scale: float, num_classes: int) -> None:
        self.start_bias(-math.log(10 * num_classes), scale)

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B - self.m + self.offset(), torch.ones_like(cosine_B))

    def negative_transform(self, cosine_B: Tensor | None) -> NegativeTransform:
        return _Offset(self.offset().float())


class _Offset(NamedTuple):
    """z becomes z + offset."""

    offset: Tensor

    def logits(self, cosines: Tensor) -> Tensor:
        return cosines.add_(self.offset)

    def logits_and_slopes(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        return cosines.add_(self.offset), cosines.new_ones(())

    def for_samples(self, samples_m: Tensor) -> NegativeTransform:
        return self
