"""Triplet loss over a shared batch: every rank holds all embeddings and labels, and computes the
triplets of its own anchors.

An anchor a, a positive p of the same identity and a negative n of another one cost [margin + d(a,
p) - d(a, n)]+, or its soft form softplus(d(a, p) - d(a, n)) (arXiv 1703.07737). Distances are
float64 and taken from differences: from products of float32 unit vectors a distance of 1e-3 would
be wrong in its fourth digit.

Shapes: B the shared batch, D the embedding, A a block of anchors, T the triplets of an anchor: 1
(`batch_hard`) or B (`semi_hard`, one for each place, alive where a positive stands).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.configs.objectives.triplet import Triplet

COINCIDENT = 1e-8
"""Two points nearer than this send each other no gradient under Euclidean distance: rounding a unit
vector to float32 moves it by more, and the direction from one to the other is noise."""
_BLOCK = 1 << 19
"""Distances held at a time; anchors are taken in blocks of this / B."""


def triplet_loss(
    unit_BD: Tensor, labels_B: Tensor, first: int, after: int, config: Triplet
) -> tuple[Tensor, Tensor]:
    """Loss (float64 []) and its gradient with respect to `unit_BD` (float32 [B, D]) of the anchors
    [first, after), times `config.weight`.

    Summed over parts that cover the batch, they are the whole loss and its gradient. `unit_BD` (any
    float dtype) are unit embeddings, 0 where `labels_B` (int64) is -1: such places are no anchor,
    no positive and no negative. The loss is a mean: over anchors that have a positive and a
    negative (`batch_hard`: the farthest positive and the nearest negative, arXiv 1703.07737,
    equation 5), or over anchor-positive pairs (`semi_hard`: the nearest negative farther away than
    the positive, arXiv 1503.03832; where none is, the farthest negative, as in TensorFlow's
    `triplet_semihard_loss`). Without a triplet both are 0. No collective, and the host waits for
    nothing. Memory: 2 B x D float64, and some 100 MiB for the block at hand, whatever B is up to
    2^19.
    """
    unit_BD = unit_BD.double()
    batch = _Batch.of(unit_BD, labels_B)
    triplets_B = batch.negatives_B > 0
    if config.mining == "semi_hard":
        triplets_B = triplets_B * batch.positives_B
    factor = config.weight / triplets_B.sum().clamp(min=1).double()

    loss = unit_BD.new_zeros(())
    d_unit_BD = torch.zeros_like(unit_BD)
    block = max(_BLOCK // max(len(labels_B), 1), 1)
    for start in range(first, after, block):
        anchors = slice(start, min(start + block, after))
        block_loss, pull_AB = _anchor_block(batch, anchors, config)
        loss += block_loss
        d_unit_BD[anchors] += pull_AB.sum(1, keepdim=True) * unit_BD[anchors] - pull_AB @ unit_BD
        d_unit_BD += pull_AB.sum(0)[:, None] * unit_BD - pull_AB.T @ unit_BD[anchors]
    return loss * factor, (d_unit_BD * factor).float()


class _Batch(NamedTuple):
    """The shared batch, and how many partners each place has."""

    unit_BD: Tensor
    labels_B: Tensor
    valid_B: Tensor
    positives_B: Tensor
    """Other places of the same identity."""
    negatives_B: Tensor
    """Places of other identities, of a place that has a positive; else 0."""

    @classmethod
    def of(cls, unit_BD: Tensor, labels_B: Tensor) -> "_Batch":
        valid_B = labels_B != -1
        sorted_B = labels_B.sort().values
        above_B = torch.searchsorted(sorted_B, labels_B, right=True)
        same_B = above_B - torch.searchsorted(sorted_B, labels_B)
        negatives_B = torch.where(valid_B & (same_B > 1), valid_B.sum() - same_B, 0)
        return cls(unit_BD, labels_B, valid_B, same_B - 1, negatives_B)


def _anchor_block(batch: _Batch, anchors: slice, config: Triplet) -> tuple[Tensor, Tensor]:
    """The summed cost of these anchors' triplets, and d cost / d difference for each pair of an
    anchor and a place, [A, B], divided by the length of the difference."""
    unit_AD, labels_B = batch.unit_BD[anchors], batch.labels_B
    euclidean_AB = torch.cdist(unit_AD, batch.unit_BD, compute_mode="donot_use_mm_for_euclid_dist")
    distance_AB = euclidean_AB.square() if config.distance == "squared" else euclidean_AB
    places_B = torch.arange(len(labels_B), device=labels_B.device)
    same_AB = labels_B[anchors, None] == labels_B
    positive_AB = same_AB & (places_B[anchors, None] != places_B)
    negative_AB = ~same_AB & batch.valid_B
    live_AB = positive_AB & (batch.negatives_B[anchors, None] > 0)
    mine = _batch_hard if config.mining == "batch_hard" else _semi_hard
    positives_AT, negatives_AT, live_AT = mine(
        distance_AB, live_AB, negative_AB, batch.negatives_B[anchors]
    )

    excess_AT = distance_AB.gather(1, positives_AT) - distance_AB.gather(1, negatives_AT)
    if config.margin == "soft":
        cost_AT = torch.logaddexp(excess_AT, torch.zeros_like(excess_AT))
        slope_AT = torch.sigmoid(excess_AT)
    else:
        cost_AT = (excess_AT + config.margin).clamp(min=0)
        slope_AT = (cost_AT > 0).double()
    slope_AT = torch.where(live_AT, slope_AT, 0)
    # d cost / d distance, where several positives may have chosen one negative.
    pull_AB = torch.zeros_like(distance_AB)
    pull_AB.scatter_add_(1, positives_AT, slope_AT).scatter_add_(1, negatives_AT, -slope_AT)
    # Times d distance / d difference.
    if config.distance == "squared":
        pull_AB *= 2
    else:
        pull_AB = torch.where(euclidean_AB < COINCIDENT, 0, pull_AB / euclidean_AB)
    return torch.where(live_AT, cost_AT, 0).sum(), pull_AB


def _batch_hard(
    distance_AB: Tensor, live_AB: Tensor, negative_AB: Tensor, _: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the positive and the negative of each triplet [A, 1], and which triplets there
    are."""
    farthest_A1 = torch.where(live_AB, distance_AB, -math.inf).argmax(1, keepdim=True)
    nearest_A1 = torch.where(negative_AB, distance_AB, math.inf).argmin(1, keepdim=True)
    return farthest_A1, nearest_A1, live_AB.any(1, keepdim=True)


def _semi_hard(
    distance_AB: Tensor, live_AB: Tensor, negative_AB: Tensor, negatives_A: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the positive and the negative of each triplet [A, B], one for each place, and which
    triplets there are. With an anchor's negatives in the order of their distances, each positive's
    is found by bisection."""
    sorted_AB, order_AB = torch.where(negative_AB, distance_AB, math.inf).sort(1)
    beyond_AB = torch.searchsorted(sorted_AB, distance_AB, right=True)
    chosen_AB = order_AB.gather(1, torch.minimum(beyond_AB, negatives_A[:, None] - 1).clamp(min=0))
    return (
        torch.arange(distance_AB.shape[1], device=distance_AB.device).expand_as(chosen_AB),
        chosen_AB,
        live_AB,
    )
