"""CosFace: an additive cosine."""

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target


class CosFace(Margin):
    """The target logit is cos(theta) - m (arXiv 1801.09414, equation 4)."""

    def __init__(self, m: float) -> None:
        self.m = m

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B - self.m, torch.ones_like(cosine_B))
