"""The two walks over class rows, chunk by chunk, of a margin softmax whose classes are spread over ranks.

Let z be cosines, t = s f(z_target) and L the log-sum-exp of s z over all columns but the target's. Then

    loss = softplus(L - t)        1 - p_target = sigmoid(L - t)        d loss / d (s z) = exp(s z - logaddexp(L, t)) off the target

Nowhere is the target among the summands: logaddexp(L, t) - t would cancel, to a loss of 0 for well-learnt samples.
Walk 1 makes L, walk 2 the gradients. Both work on the cosines of one chunk at a time, in float32. Walk 1 drops them and walk 2 makes them
anew (`recompute`), or it keeps exp(s z - the sample's largest of the chunk) in float16 (`store16`): half the bytes of float32 logits.

Shapes: B the global batch (padded places included), D the embedding, n the rows of a chunk.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.collectives import Ranks
from manyfaces.models.margins import Margin
from manyfaces.models.products import times_transposed
from manyfaces.models.rows import SHORTEST, Gate, Rows, looking_is_free
from manyfaces.models.sampling import Chunk, Columns

LARGEST_FIXED_SCALE = 73.0
"""Up to here exp(s z - (s - 60)) stays within float32 for all cosines, and for sums of 1e12 of them; above, each chunk has its maximum."""
BIG_SHARE = 1 / 256
"""`store16`: probabilities above this are made anew in walk 2. float16 leaves 2e-4 of each; of all below, 1/16 of that in norm."""
_LOG_SMALLEST_SHARE = -40
_LOG2_E = 1 / math.log(2)
"""Exponents are in bits: on CPU torch's exp2 takes a quarter of the time of its exp, which asks MKL."""
_HEADROOM = 14
"""float16 is equally exact from 2^14 to 2^-14, so the largest number of a chunk is stored as 2^14."""


class Kept(NamedTuple):
    """What walk 1 hands to walk 2 of one chunk."""

    inverse_n: Tensor
    """1 / |row|"""
    bits_B: Tensor | None = None
    """float32: largest s z off the target, in bits, less `_HEADROOM`. None unless stored, like the next."""
    exps_Bn: Tensor | None = None
    """float16: exp(s z) / 2^bits, 0 at the target."""


class Negatives(NamedTuple):
    """Of one rank's columns without the targets'."""

    sum_B: Tensor
    """float64: sum of exp(s z), for s up to 512 within its range."""
    kept: list[Kept]


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
    L_B: Tensor
    log_factor_B: Tensor
    """d loss / d z = exp(s z + log_factor) off the target."""
    d_target_B: Tensor
    """d loss / d z at the target."""


class _Targets:
    """Where the samples' own columns stand in a chunk."""

    def __init__(self, chunk: Chunk, targets_B: Tensor) -> None:
        column_B = targets_B - chunk.first
        self.here_B1 = ((column_B >= 0) & (column_B < len(chunk)))[:, None]
        self.column_B1 = torch.where(self.here_B1, column_B[:, None], 0)

    def set_(self, scores_Bn: Tensor, value_B1: Tensor | float) -> None:
        scores_Bn.scatter_(1, self.column_B1, torch.where(self.here_B1, value_B1, scores_Bn.gather(1, self.column_B1)))


def sum_negatives(rows: Rows, unit_BD: Tensor, columns: Columns, scale: float, *, store: bool) -> Negatives:
    """Walk 1."""
    shift = scale - 60 if scale <= LARGEST_FIXED_SCALE and not store else None
    sum_B = torch.zeros(len(unit_BD), dtype=torch.float64, device=unit_BD.device)
    inverse_norms = unit_BD.new_empty(sum(map(len, columns.chunks)))  # in one piece: small ones between large ones would scatter memory
    kept = []
    for chunk in columns.chunks:
        rows_nD = rows.take(chunk.ids)
        inverse_n = inverse_norms[chunk.first : chunk.first + len(chunk)]
        inverse_n.copy_(rows.inverse_norms(chunk.ids, rows_nD))
        scores_Bn = times_transposed(unit_BD, rows_nD)
        if shift is None:
            scores_Bn.mul_(inverse_n * (scale * _LOG2_E))
        else:
            torch.addcmul(unit_BD.new_full((1, 1), -shift * _LOG2_E), scores_Bn, inverse_n * (scale * _LOG2_E), out=scores_Bn)
        if chunk.absent_n is not None:
            scores_Bn.masked_fill_(chunk.absent_n, -math.inf)
        _Targets(chunk, columns.targets_B).set_(scores_Bn, -math.inf)
        if shift is None:
            bits_B = scores_Bn.amax(1).clamp_(min=-scale * _LOG2_E) - _HEADROOM  # -inf where there is nothing but the target
            sums_B = scores_Bn.sub_(bits_B[:, None]).exp2_().sum(1)
            sum_B.addcmul_(sums_B.double(), bits_B.double().exp2_())
            kept.append(Kept(inverse_n, bits_B, scores_Bn.half()) if store else Kept(inverse_n))
        else:
            sum_B += scores_Bn.exp2_().sum(1)
            kept.append(Kept(inverse_n))
    return Negatives(sum_B if shift is None else sum_B * math.exp(shift), kept)


def target_cosines(rows: Rows, unit_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the targets that are rows here and whether they are, float64 [B] both; 0 elsewhere. `labels_B` are local row numbers.

    In float64 and normalised anew: the loss of a well-learnt sample is exp(L - t), so an error of t is a relative error of the loss.
    """
    here_B = (labels_B >= 0) & (labels_B < rows.num_rows)
    own_BD = rows.take(torch.where(here_B, labels_B, rows.num_rows)).double()
    unit_BD = unit_BD.double()
    lengths_B = torch.linalg.vector_norm(own_BD, dim=1) * torch.linalg.vector_norm(unit_BD, dim=1)
    return torch.where(here_B, (own_BD * unit_BD).sum(1) / lengths_B.clamp(min=SHORTEST), 0), here_B.double()


def join(negatives: Negatives, cosine_B: Tensor, owners_B: Tensor, valid_B: Tensor, margin: Margin, scale: float, ranks: Ranks) -> Outcome:
    """One sum over ranks; the rest is B numbers, the same on each rank."""
    sum_B, cosine_B, owners_B = ranks.sum_(torch.stack([negatives.sum_B, cosine_B, owners_B]))
    value_B, slope_B = margin(cosine_B.clamp(-1, 1))
    t_B, L_B = scale * value_B, sum_B.log()
    num_valid = valid_B.double().sum().clamp(min=1)
    loss = torch.where(valid_B, torch.logaddexp(L_B - t_B, torch.zeros_like(t_B)), 0).sum() / num_valid
    finite, one_owner = loss.isfinite(), ((owners_B == 1) | ~valid_B).all()
    log_factor_B = torch.log(scale / num_valid) - torch.logaddexp(L_B, t_B)
    d_target_B = -scale / num_valid * torch.sigmoid(L_B - t_B) * slope_B
    return Outcome(loss, finite, one_owner, valid_B & finite & one_owner, L_B, log_factor_B, d_target_B)


def descend(rows: Rows, unit_BD: Tensor, columns: Columns, scale: float, outcome: Outcome, kept: list[Kept], gate: Gate) -> Tensor:
    """Walk 2: updates the rows in place and returns this rank's part of d loss / d unit vectors, float32 [B, D], from the rows before."""
    if looking_is_free(unit_BD.device) and not outcome.live_B.any():
        return torch.zeros_like(unit_BD)
    # Samples that send no gradient are zeroed rather than multiplied by zero: they may be NaN.
    unit_BD = torch.where(outcome.live_B[:, None], unit_BD, 0)
    exponent_B, factor_B = exponents(outcome)
    weighted_BD = unit_BD * factor_B[:, None].float()
    d_unit_BD = torch.zeros_like(unit_BD)
    for chunk, parts in zip(columns.chunks, kept, strict=True):
        rows_nD = rows.take(chunk.ids)
        # Each sample's gradients are in a unit of its own, which multiplies what is B x D.
        if parts.exps_Bn is None:
            d_scores_Bn = times_transposed(unit_BD, rows_nD)
            torch.addcmul(exponent_B[:, None], d_scores_Bn, parts.inverse_n * (scale * _LOG2_E), out=d_scores_Bn).exp2_()
        else:
            d_scores_Bn, factor_B = _restore(rows_nD, unit_BD, parts, scale, outcome)
            weighted_BD = unit_BD * factor_B[:, None].float()
        if chunk.absent_n is not None:
            d_scores_Bn.masked_fill_(chunk.absent_n, 0)
        d_target_B1 = torch.where(outcome.live_B, outcome.d_target_B / factor_B, 0).float()[:, None]
        _Targets(chunk, columns.targets_B).set_(d_scores_Bn, d_target_B1)
        d_scores_Bn *= parts.inverse_n
        d_unit_BD.addcmul_(times_transposed(d_scores_Bn, rows_nD.T), factor_B[:, None].float())
        rows.update_(chunk.ids, rows_nD, parts.inverse_n, times_transposed(d_scores_Bn.T, weighted_BD.T), gate)
    return d_unit_BD


def exponents(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """Of d loss / d z = factor x 2^(s z in bits + exponent) off the target: exponent, float32 [B], -inf for samples without a gradient, and
    factor, float64 [B]."""
    # float32 holds an exponent of 90 to 4e-6 only, so its whole part goes in, exactly, and the rest multiplies what is B x D.
    whole_B = (outcome.log_factor_B * _LOG2_E).round()
    factor_B = torch.where(outcome.live_B, torch.exp(outcome.log_factor_B - whole_B / _LOG2_E), 0)
    return torch.where(outcome.live_B, whole_B, -math.inf).float(), factor_B


def _restore(rows_nD: Tensor, unit_BD: Tensor, parts: Kept, scale: float, outcome: Outcome) -> tuple[Tensor, Tensor]:
    """d loss / d z off the targets [B, n] from what walk 1 stored, and each sample's unit of them, float64 [B]."""
    assert parts.exps_Bn is not None
    assert parts.bits_B is not None
    d_scores_Bn = parts.exps_Bn.float()
    log_share_B = parts.bits_B.double() / _LOG2_E - outcome.L_B
    if looking_is_free(d_scores_Bn.device):  # elsewhere float16 has to do
        samples_k = (log_share_B + _HEADROOM / _LOG2_E > math.log(BIG_SHARE)).nonzero()[:, 0]
        big_kn = d_scores_Bn[samples_k] > (BIG_SHARE * torch.exp(-log_share_B[samples_k]))[:, None]
        turns_m, columns_m = big_kn.nonzero(as_tuple=True)
        samples_m = samples_k[turns_m]
        dots_m = torch.linalg.vecdot(unit_BD[samples_m], rows_nD[columns_m])
        exponents_m = dots_m * parts.inverse_n[columns_m] * (scale * _LOG2_E) - parts.bits_B[samples_m]
        d_scores_Bn[samples_m, columns_m] = exponents_m.exp2_()
    else:
        d_scores_Bn.masked_fill_(~outcome.live_B[:, None], 0)
    # NaN where there are no negatives at all, and nothing to scale.
    log_unit_B = (log_share_B.clamp(min=_LOG_SMALLEST_SHARE) + outcome.L_B + outcome.log_factor_B).nan_to_num(nan=0.0)
    return d_scores_Bn, torch.where(outcome.live_B, log_unit_B.exp(), 0)
