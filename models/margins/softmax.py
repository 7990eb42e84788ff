"""Softmax: no margin."""

import torch
from torch import Tensor

from manyfaces.models.margins.margin import Margin, Target


class Softmax(Margin):
    """The target logit is z itself (NormFace, arXiv 1704.06369, equation 7)."""

    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        return Target(cosine_B, torch.ones_like(cosine_B))
