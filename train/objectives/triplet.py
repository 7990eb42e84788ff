"""Triplet loss: an embedding is nearer to those of its own identity than to those of others."""

import torch

from manyfaces.configs.objectives import triplet as schema
from manyfaces.data.feed.loader import Batch
from manyfaces.models.head.collectives import Ranks
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Objective, Setting
from manyfaces.train.objectives.triplet_loss import triplet_loss


class Triplet(Objective):
    """Triplets over the global batch (FaceNet, arXiv 1503.03832; batch-hard, arXiv 1703.07737). It
    has no state."""

    tells_last = True

    def __init__(self, settings: schema.Triplet, setting: Setting) -> None:
        self.settings = settings
        self.ranks = Ranks(setting.group)
        self.wire_dtype = getattr(torch, settings.wire_dtype)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        branch = self.settings.branch
        joint = forward.joint(branch, batch.labels_N, moment, self.ranks, self.wire_dtype)
        shared, (first, after) = joint.shared, joint.exchange.own_places
        part, d_unit_BD = triplet_loss(shared.unit_BD, shared.labels_B, first, after, self.settings)
        value = self.ranks.sum_(part.clone())
        finite = value.isfinite()
        return Loss(
            surrogate=joint.surrogate(torch.where(finite, d_unit_BD, 0)),
            value=value,
            finite=finite,
            last=shared.last,
        )
