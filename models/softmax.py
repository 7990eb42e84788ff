"""The two walks over class rows, chunk by chunk, of a margin softmax whose classes are spread over ranks.

Let z be cosines, t = s f(z_target) and L the log-sum-exp of s z over all columns but the target's. Then

    loss = softplus(L - t)        1 - p_target = sigmoid(L - t)        d loss / d (s z) = exp(s z - logaddexp(L, t)) off the target

Nowhere is the target among the summands: logaddexp(L, t) - t would cancel, to a loss of 0 for well-learnt samples.
Walk 1 makes L, walk 2 the gradients; both make the cosines of one chunk at a time, in float32, and drop them.

Shapes: B the global batch (padded places included), D the embedding, n the rows of a chunk.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.collectives import Ranks
from manyfaces.models.margins import Margin
from manyfaces.models.rows import Gate, Rows, take

LARGEST_FIXED_SCALE = 73.0
"""Up to here exp(s z - (s - 60)) stays within float32 for all cosines, and for sums of 1e12 of them; above, a running maximum is kept."""
_SHORTEST = 1e-12


class Walk(NamedTuple):
    """Which rows a step walks over, and where each sample's target stands."""

    chunks: Sequence[slice | Tensor]
    """Local rows of each chunk: a slice, or sorted ids."""
    labels_B: Tensor
    """Targets as local row numbers; others' are out of range."""
    gone_C: Tensor | None = None
    """bool: local rows that are no classes any more; None where all are."""

    def leave_out_(self, scores_Bn: Tensor, ids: slice | Tensor, value: float) -> None:
        """Set the columns of the classes that are gone."""
        if self.gone_C is not None:
            scores_Bn.masked_fill_(take(self.gone_C, ids), value)

    def target(self, ids: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Column of each sample's target in the chunk [B, 1], and whether it is there; columns of absent ones are any."""
        if isinstance(ids, Tensor):
            column_B = torch.searchsorted(ids, self.labels_B).clamp(max=len(ids) - 1)
            return column_B[:, None], (take(ids, column_B) == self.labels_B)[:, None]
        here_B = (self.labels_B >= ids.start) & (self.labels_B < ids.stop)
        return torch.where(here_B, self.labels_B - ids.start, 0)[:, None], here_B[:, None]


class Negatives(NamedTuple):
    """Of one rank's columns without the targets': sum of exp(s z - shift)."""

    shift_B: Tensor
    """float32"""
    sum_B: Tensor
    """float64"""
    inverse_norms: list[Tensor]
    """1 / |row|, [n] of each chunk, for walk 2."""


class Outcome(NamedTuple):
    """What all ranks agree on after walk 1; float64 [B] where not said otherwise."""

    loss: Tensor
    """Mean over valid labels, float64 []."""
    finite: Tensor
    """bool []"""
    one_owner: Tensor
    """bool []: each valid label is a row of exactly one rank."""
    live_B: Tensor
    """bool: samples that send gradients; none where the step is called off."""
    log_factor_B: Tensor
    """d loss / d z = exp(s z + log_factor) off the target."""
    d_target_B: Tensor
    """d loss / d z at the target."""


def _inverse_norms(rows_nD: Tensor) -> Tensor:
    norms_n: Tensor = torch.linalg.vector_norm(rows_nD, dim=1)
    return norms_n.clamp_(min=_SHORTEST).reciprocal_()


def _set_target_(scores_Bn: Tensor, column_B1: Tensor, here_B1: Tensor, value_B1: Tensor | float) -> None:
    scores_Bn.scatter_(1, column_B1, torch.where(here_B1, value_B1, scores_Bn.gather(1, column_B1)))


def _num_rows(ids: slice | Tensor) -> int:
    return len(ids) if isinstance(ids, Tensor) else ids.stop - ids.start


def _scratch(walk: Walk, unit_BD: Tensor) -> Tensor:
    return unit_BD.new_empty(len(unit_BD) * max(map(_num_rows, walk.chunks), default=0))


def sum_negatives(rows_CD: Tensor, unit_BD: Tensor, walk: Walk, scale: float) -> Negatives:
    """Walk 1."""
    running = scale > LARGEST_FIXED_SCALE
    shift_B = unit_BD.new_full((len(unit_BD),), -scale if running else scale - 60)  # no cosine is below -1: finite even without columns
    sum_B = torch.zeros_like(shift_B, dtype=torch.float64)
    inverse_norms, scratch = [], _scratch(walk, unit_BD)
    for ids in walk.chunks:
        rows_nD = take(rows_CD, ids)
        inverse_norms.append(_inverse_norms(rows_nD))
        scores_Bn = scratch[: len(unit_BD) * len(rows_nD)].view(len(unit_BD), -1)
        torch.mm(unit_BD, rows_nD.T, out=scores_Bn)
        if running:
            scores_Bn.mul_(inverse_norms[-1] * scale)
            walk.leave_out_(scores_Bn, ids, -math.inf)
            _set_target_(scores_Bn, *walk.target(ids), -math.inf)
            higher_B = torch.maximum(shift_B, scores_Bn.amax(1))
            sum_B *= torch.exp(shift_B.double() - higher_B)
            shift_B = higher_B
            scores_Bn -= shift_B[:, None]
        else:
            torch.addcmul(-shift_B[:, None], scores_Bn, inverse_norms[-1] * scale, out=scores_Bn)
            walk.leave_out_(scores_Bn, ids, -math.inf)
            _set_target_(scores_Bn, *walk.target(ids), -math.inf)
        sum_B += scores_Bn.exp_().sum(1)
    return Negatives(shift_B, sum_B, inverse_norms)


def target_cosines(rows_CD: Tensor, unit_BD: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    """Cosines of the targets that are rows here and whether they are, float64 [B] both; 0 elsewhere.

    In float64 and normalised anew: the loss of a well-learnt sample is exp(L - t), so an error of t is a relative error of the loss.
    """
    here_B = (walk.labels_B >= 0) & (walk.labels_B < len(rows_CD))
    if not len(rows_CD):
        return torch.zeros_like(here_B, dtype=torch.float64), here_B.double()
    own_BD = take(rows_CD, torch.where(here_B, walk.labels_B, 0)).double()
    unit_BD = unit_BD.double()
    lengths_B = torch.linalg.vector_norm(own_BD, dim=1) * torch.linalg.vector_norm(unit_BD, dim=1)
    return torch.where(here_B, (own_BD * unit_BD).sum(1) / lengths_B.clamp(min=_SHORTEST), 0), here_B.double()


def join(negatives: Negatives, cosine_B: Tensor, owners_B: Tensor, valid_B: Tensor, margin: Margin, scale: float, ranks: Ranks) -> Outcome:
    """One sum over ranks, and one maximum before it above `LARGEST_FIXED_SCALE`; the rest is B numbers, the same on each rank."""
    shift_B, sum_B = negatives.shift_B, negatives.sum_B
    if scale > LARGEST_FIXED_SCALE:
        highest_B = ranks.max_(shift_B.clone())
        sum_B, shift_B = sum_B * torch.exp(shift_B.double() - highest_B), highest_B
    sum_B, cosine_B, owners_B = ranks.sum_(torch.stack([sum_B, cosine_B, owners_B]))
    value_B, slope_B = margin(cosine_B.clamp(-1, 1))
    t_B, L_B = scale * value_B, sum_B.log() + shift_B
    num_valid = valid_B.double().sum().clamp(min=1)
    loss = torch.where(valid_B, torch.logaddexp(L_B - t_B, torch.zeros_like(t_B)), 0).sum() / num_valid
    finite, one_owner = loss.isfinite(), ((owners_B == 1) | ~valid_B).all()
    log_factor_B = torch.log(scale / num_valid) - torch.logaddexp(L_B, t_B)
    d_target_B = -scale / num_valid * torch.sigmoid(L_B - t_B) * slope_B
    return Outcome(loss, finite, one_owner, valid_B & finite & one_owner, log_factor_B, d_target_B)


def descend(rows: Rows, unit_BD: Tensor, walk: Walk, scale: float, outcome: Outcome, inverse_norms: list[Tensor], gate: Gate) -> Tensor:
    """Walk 2: updates the rows in place and returns this rank's part of d loss / d unit vectors, float32 [B, D], from the rows before."""
    # Samples that send no gradient are zeroed rather than multiplied by zero: they may be NaN.
    live_B1 = outcome.live_B[:, None]
    unit_BD = torch.where(live_B1, unit_BD, 0)
    # float32 holds a log of 60 to 4e-6 only, so its whole part goes into the exponent, exactly, and the rest multiplies what is B x D.
    whole_B1 = outcome.log_factor_B.round()[:, None]
    factor_B1 = torch.where(live_B1, torch.exp(outcome.log_factor_B[:, None] - whole_B1), 0)
    d_target_B1 = torch.where(live_B1, outcome.d_target_B[:, None] / factor_B1, 0).float()
    exponent_B1, factor_B1 = torch.where(live_B1, whole_B1, -math.inf).float(), factor_B1.float()
    weighted_BD = unit_BD * factor_B1
    d_unit_BD = torch.zeros_like(unit_BD)
    scratch, scratch_2 = _scratch(walk, unit_BD), _scratch(walk, unit_BD)
    for ids, inverse_n in zip(walk.chunks, inverse_norms, strict=True):
        rows_nD = take(rows.rows_CD, ids)
        size = len(unit_BD) * len(rows_nD)
        dots_Bn, d_logits_Bn = scratch[:size].view(len(unit_BD), -1), scratch_2[:size].view(len(unit_BD), -1)
        torch.mm(unit_BD, rows_nD.T, out=dots_Bn)
        torch.addcmul(exponent_B1, dots_Bn, inverse_n * scale, out=d_logits_Bn).exp_()
        walk.leave_out_(d_logits_Bn, ids, 0)
        _set_target_(d_logits_Bn, *walk.target(ids), d_target_B1)
        d_logits_Bn *= inverse_n
        d_unit_BD.addmm_(d_logits_Bn, rows_nD)
        # The part of a row's gradient along the row itself, which a cosine cannot feel, is taken off: its length in units of the row's.
        radial_n = torch.mv(dots_Bn.mul_(d_logits_Bn).T, factor_B1[:, 0]) * inverse_n.square()
        rows.update_(ids, rows_nD, d_logits_Bn.T, weighted_BD, radial_n, gate)
    return d_unit_BD.mul_(factor_B1)
