"""CR-FIQA: a margin softmax, and beside it a score head that learns how classifiable each face is,
which is its quality."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.objectives import cr_fiqa as schema
from manyfaces.data.feed.loader import IGNORED, Batch
from manyfaces.models.backbones.score_heads import Scored, ScoreHead
from manyfaces.train.objectives.margin_softmax import MarginSoftmax
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Setting

_EPSILON = 1e-9
_MASKED = -1e-12
"""What the released code puts in place of the cosine with the own class."""


class CRFIQA(MarginSoftmax):
    """Margin softmax + `quality_weight` x smooth L1 between the score head's number and the
    certainty ratio of the sample (Boutros et al., CVPR 2023, arXiv 2112.06592), both means over the
    valid labels of the global batch. The ratio is a constant; the score's gradient goes through the
    embedding into the backbone."""

    def __init__(self, settings: schema.CRFIQA, setting: Setting) -> None:
        super().__init__(settings.weight, settings.branch, setting)
        self.settings = settings
        self.dim = setting.config.model.embedding_dim

    def network(self, backbone: nn.Module) -> nn.Module:
        return Scored(backbone, {schema.SCORE: ScoreHead(self.branch, self.dim)})

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        softmax, (own_N, nearest_N) = self.step_head(forward, batch, moment, details=True)
        assert own_N is not None
        assert nearest_N is not None
        ratio_N = certainty_ratio(own_N, nearest_N, self.settings.formula)
        # Without any other class there is no ratio.
        counted_N = (batch.labels_N != IGNORED) & (nearest_N != -torch.inf)
        # What does not count may be no number, and both sides are then 0.
        score_N, ratio_N = (
            torch.where(counted_N, each_N, 0) for each_N in (forward.scores(schema.SCORE), ratio_N)
        )
        distance_N = F.smooth_l1_loss(
            score_N, ratio_N, reduction="none", beta=self.settings.beta
        ).double()
        own = distance_N.sum() * self.settings.quality_weight * self.weight
        ranks = self.head.ranks
        whole, num_counted = ranks.sum_(torch.stack([own.detach(), counted_N.double().sum()]))
        num_counted = num_counted.clamp(min=1)
        quality = whole / num_counted
        return replace(
            softmax,
            surrogate=softmax.surrogate.double() + own * ranks.world_size / num_counted,
            value=softmax.value + quality,
            finite=softmax.finite & quality.isfinite(),
            metrics={"loss_margin_softmax": softmax.value, "loss_quality": quality},
        )


def certainty_ratio(
    own_N: Tensor, nearest_N: Tensor, formula: Literal["paper", "released"]
) -> Tensor:
    """How classifiable each sample is, float32 [N], from its cosines with its own class (CCS) and
    with the nearest other one (NNCCS): `paper` is CCS / (NNCCS + 1 + 1e-9), equation 4 of arXiv
    2112.06592, `released` is CCS / max(NNCCS, -1e-12), as the authors' program has it."""
    own_N, nearest_N = own_N.double().clamp(-1, 1), nearest_N.double().clamp(-1, 1)
    if formula == "released":
        ratio_N = own_N / nearest_N.clamp(min=_MASKED)
    else:
        ratio_N = own_N / (nearest_N + 1 + _EPSILON)
    return ratio_N.float()
