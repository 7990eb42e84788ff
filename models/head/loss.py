"""The loss over all ranks, from the target cosines and each rank's sums over other classes: B
numbers, joined by one collective.

Shapes as in `passes.py`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.exchange import Shared
from manyfaces.models.head.passes import LOG2_E, GlobalLoss, NegativeSums, Scoring, TargetCosines
from manyfaces.models.head.rows import SHORTEST, Rows
from manyfaces.models.margins.margin import Margin


def target_cosines(sub_centers: Sequence[Rows], unit_BD: Tensor, row_B: Tensor) -> TargetCosines:
    """Cosines of the targets that are rows here, with the nearest sub-centre. `row_B` (int64) is
    each sample's row in `sub_centers`, or a number outside them.

    In float64 and normalised anew: the loss of a well-learnt sample is exp(L - t), so an error of t
    is a relative error of the loss.
    """
    num_rows = sub_centers[0].num_rows
    here_B = (row_B >= 0) & (row_B < num_rows)
    unit_BD = unit_BD.double()
    norms_B = torch.linalg.vector_norm(unit_BD, dim=1)
    cosines = []
    for rows in sub_centers:
        own_BD = rows.take(torch.where(here_B, row_B, num_rows)).double()
        lengths_B = torch.linalg.vector_norm(own_BD, dim=1) * norms_B
        cosines.append((own_BD * unit_BD).sum(1) / lengths_B.clamp(min=SHORTEST))
    cosine_B, nearest_B = torch.stack(cosines).max(0)
    return TargetCosines(torch.where(here_B, cosine_B, 0), here_B.double(), nearest_B)


def global_loss(
    margin: Margin,
    targets: TargetCosines,
    negatives: NegativeSums,
    batch: Shared,
    scale: float,
    weight: float,
    ranks: Ranks,
) -> GlobalLoss:
    """The loss times `weight` (>= 0), and its derivatives; one collective joins the ranks. Of a
    margin that needs target cosines, `targets` are sums over ranks already."""
    targets, sum_B, derivative_B = _over_ranks(margin, targets, negatives, ranks)
    cosine_B = targets.cosine_B.clamp(-1, 1)
    target = margin.target(cosine_B, batch.norm_B)
    valid_B, counted_B, weights_B = batch.valid_B, batch.counted_B, batch.weights_B
    if weight != 1:
        weights_B = valid_B.double() * weight if weights_B is None else weights_B * weight
        counted_B = counted_B & (weight > 0)
    num_valid = valid_B.double().sum().clamp(min=1)

    def weighted(values_B: Tensor) -> Tensor:
        return values_B if weights_B is None else values_B * weights_B

    t_B = scale * target.value_B
    if margin.binary is None:
        terms = _softmax_terms(t_B, sum_B, scale / num_valid)
    else:
        terms = _logistic_terms(t_B, sum_B, derivative_B, scale, num_valid, margin.binary)
    d_t_B = weighted(terms.d_t_B / num_valid)
    d_bias = torch.zeros_like(num_valid)
    if terms.d_others_B is not None:
        d_bias_B = weighted(terms.d_others_B / num_valid) + d_t_B
        d_bias = torch.where(counted_B, d_bias_B, 0).sum()
    loss_B, d_norm_B = terms.loss_B, None
    if target.by_norm_B is not None:
        d_norm_B = scale * d_t_B * target.by_norm_B
    if target.extra_B is not None:
        loss_B = loss_B + target.extra_B
    if target.d_extra_B is not None:
        d_extra_B = weighted(target.d_extra_B / num_valid)
        d_norm_B = d_extra_B if d_norm_B is None else d_extra_B + d_norm_B
    log_factor_B = terms.log_factor_B
    if weights_B is not None:
        log_factor_B = log_factor_B + weights_B.log()
    loss = torch.where(counted_B, weighted(loss_B), 0).sum() / num_valid
    finite, one_owner = loss.isfinite(), ((targets.num_owners_B == 1) | ~valid_B).all()
    return GlobalLoss(
        loss=loss,
        finite=finite,
        one_owner=one_owner,
        active_B=counted_B & finite & one_owner,
        target_cosine_B=targets.cosine_B,
        log_derivative_B=derivative_B.log(),
        log_factor_B=log_factor_B,
        d_target_B=scale * d_t_B * target.slope_B,
        d_norm_B=d_norm_B,
        d_bias=d_bias,
    )


class _Terms(NamedTuple):
    """The samples' losses and their derivatives before weights and the mean; float64 [B]."""

    loss_B: Tensor
    d_t_B: Tensor
    """d loss / d t, the target's logit."""
    log_factor_B: Tensor
    """As `GlobalLoss.log_factor_B`, with the mean, without the weights."""
    d_others_B: Tensor | None = None
    """d loss / d a number added to the other classes' logits, of a binary loss."""


def _softmax_terms(t_B: Tensor, sum_B: Tensor, scale_share: Tensor) -> _Terms:
    """The softmax cross entropy, from each sample's sum of exponentials. `scale_share` is the scale
    over the number of valid labels."""
    L_B = sum_B.log()
    return _Terms(
        loss_B=torch.logaddexp(L_B - t_B, torch.zeros_like(t_B)),
        d_t_B=-torch.sigmoid(L_B - t_B),
        log_factor_B=torch.log(scale_share) - torch.logaddexp(L_B, t_B),
    )


def _logistic_terms(
    t_B: Tensor,
    sum_B: Tensor,
    derivative_B: Tensor,
    scale: float,
    num_valid: Tensor,
    weights: tuple[float, float],
) -> _Terms:
    """A logistic loss of each class, from each sample's sum of the others' losses and that of their
    derivatives. `weights` is `Margin.binary`."""
    own, others = weights
    return _Terms(
        loss_B=own * torch.logaddexp(-t_B, torch.zeros_like(t_B)) + others * sum_B,
        d_t_B=-own * torch.sigmoid(-t_B),
        log_factor_B=(scale * others / num_valid).log().expand_as(t_B),
        d_others_B=others * derivative_B,
    )


def _over_ranks(
    margin: Margin, targets: TargetCosines, negatives: NegativeSums, ranks: Ranks
) -> tuple[TargetCosines, Tensor, Tensor]:
    """Target cosines, sums over other classes and sums of their derivatives of all ranks. A softmax
    has one and the same for the last two."""
    parts = [negatives.sum_B]
    if negatives.derivative_B is not None:
        parts.append(negatives.derivative_B)
    if not margin.needs_target_cosines:
        parts += [targets.cosine_B, targets.num_owners_B]
    summed = ranks.sum_(torch.stack(parts))
    if not margin.needs_target_cosines:
        targets = targets._replace(cosine_B=summed[-2], num_owners_B=summed[-1])
    return targets, summed[0], summed[int(negatives.derivative_B is not None)]


def split_factor(loss: GlobalLoss, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Split `loss.log_factor_B` so that d loss / d f = factor x 2^(s f in bits + exponent) off the
    target: exponent, float32 [B], -inf for samples without a gradient, and factor, float64 [B]. Of
    a binary loss the exponent is 0."""
    exponent_B = torch.zeros_like(loss.log_factor_B)
    if not scoring.binary:
        # float32 holds an exponent of 90 to 4e-6 only, so its whole part goes in, exactly, and the
        # rest multiplies what is B x D.
        exponent_B = (loss.log_factor_B * LOG2_E).round()
    factor_B = torch.exp(loss.log_factor_B - exponent_B / LOG2_E)
    return (
        torch.where(loss.active_B, exponent_B, -math.inf).float(),
        torch.where(loss.active_B, factor_B, 0),
    )
