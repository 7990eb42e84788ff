"""Triplet loss: an embedding is nearer to those of its own identity than to those of others."""

import torch

from manyfaces.configs.objectives import triplet as schema
from manyfaces.data.feed.loader import Batch
from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.exchange import Exchange
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Objective, Setting
from manyfaces.train.objectives.triplet_loss import triplet_loss


class Triplet(Objective):
    """Triplets over the global batch (FaceNet, arXiv 1503.03832; batch-hard, arXiv 1703.07737). It
    has no state."""

    def __init__(self, settings: schema.Triplet, setting: Setting) -> None:
        self.settings = settings
        self.ranks = Ranks(setting.group)
        self.wire_dtype = getattr(torch, settings.wire_dtype)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        embeddings_ND = forward.embeddings(self.settings.branch)
        exchange = Exchange(self.ranks, moment.batch_size, self.wire_dtype)
        shared = exchange.gather(embeddings_ND, batch.labels_N, last=moment.last)
        first, after = exchange.own_places
        part, d_unit_BD = triplet_loss(shared.unit_BD, shared.labels_B, first, after, self.settings)
        value = self.ranks.sum_(part.clone())
        finite = value.isfinite()
        d_embeddings_ND = exchange.gradient(shared, torch.where(finite, d_unit_BD, 0))
        return Loss(
            surrogate=(embeddings_ND * d_embeddings_ND).sum(),
            value=value,
            finite=finite,
            last=shared.last,
        )
