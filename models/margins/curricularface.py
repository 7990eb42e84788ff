"""CurricularFace: hard classes come in as training goes on."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from manyfaces.models.margins.arcface import ArcFace
from manyfaces.models.margins.margin import NegativeTransform, State, above, angle, mean, number


class CurricularFace(ArcFace):
    """ArcFace in which another class at a cosine z_j above cos(theta + m), a hard one, counts as
    z_j (t + z_j) (arXiv 2004.00288).

    t is a running mean of the target cosines of global batches, from 0 on: hard classes weigh
    little at first, and more and more.
    """

    needs_target_cosines: ClassVar[bool] = True
    largest_logit = 2.0

    def __init__(self, m: float, momentum: float) -> None:
        super().__init__(m)
        self.momentum = momentum
        self.state = {"t": number(0.0)}

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        assert cosine_B is not None
        t = self.state["t"]
        new = self.momentum * mean(cosine_B, valid_B) + (1 - self.momentum) * t
        # NaN would reach all samples' logits before the step is called off.
        return {"t": torch.where(valid_B.any() & new.isfinite(), new, t)}

    def negative_transform(self, cosine_B: Tensor | None) -> NegativeTransform:
        assert cosine_B is not None
        threshold_B = torch.cos(angle(cosine_B.clamp(-1, 1))[0] + self.m)
        threshold_B = threshold_B.nan_to_num(nan=2.0)  # of a step that will be called off
        return _HardNegatives(threshold_B.float()[:, None], self.state["t"].float())


class _HardNegatives(NamedTuple):
    """z becomes z (t + z) where it is above the sample's threshold."""

    threshold: Tensor
    """float32 [B, 1], or [m] after `for_samples`."""
    t: Tensor

    def logits(self, cosines: Tensor) -> Tensor:
        return cosines.addcmul_(cosines, self._excess(cosines)[0])

    def logits_and_slopes(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        excess, hard = self._excess(cosines)
        slopes = hard.mul_(cosines).add_(excess).add_(1)
        return cosines.addcmul_(cosines, excess), slopes

    def _excess(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """hard (t + z - 1), which times z is added to z, and hard: 1 for a hard class, else 0."""
        hard = above(cosines, self.threshold)
        return (cosines + (self.t - 1)).mul_(hard), hard

    def for_samples(self, samples_m: Tensor) -> NegativeTransform:
        return self._replace(threshold=self.threshold[samples_m, 0])
