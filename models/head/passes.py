"""The two walks over class rows, chunk by chunk, of a margin softmax whose classes are spread over
ranks.

Let z be cosines, t = s f(z_target) and L the log-sum-exp of s z over all columns but the target's.
Then

    loss = softplus(L - t)        1 - p_target = sigmoid(L - t)        d loss / d (s z) = exp(s z -
    logaddexp(L, t)) off the target

Nowhere is the target among the summands: logaddexp(L, t) - t would cancel, to a loss of 0 for
well-learnt samples. A margin may bend z before, or take the sum of softplus(s z) instead of L
(binary): then t and the others each have a loss of their own. Of K sub-centres of a class the
nearest gives z and gets the gradient. Walk 1 makes L, walk 2 the gradients. Both work on the
cosines of one chunk at a time, in float32. Walk 1 drops them and walk 2 makes them anew
(`recompute`), or it keeps d L / d z of the chunk in float16, in the sample's own unit (`store16`):
half the bytes of float32 logits.

Shapes: B the global batch (padded places included), D the embedding, n the rows of a chunk, K
sub-centres.
"""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.products import times_transposed, transposed
from manyfaces.models.head.rows import SHORTEST, Gate, Rows, looking_is_free
from manyfaces.models.head.sampling import Chunk, Columns
from manyfaces.models.margins.margin import Bend, Margin, above

LARGEST_FIXED_SCALE = 73.0
"""Up to here exp(s z - (s - 60)) stays within float32 for all cosines, and for sums of 1e12 of
them; above, each chunk has its maximum."""
BIG_SHARE = 1 / 256
"""`store16`: probabilities above this are made anew in walk 2. float16 leaves 2e-4 of each; of all
below, 1/16 of that in norm. Where slopes or logistic losses come in, that is not little enough
beside all, and it is a quarter of this."""
_LOG_SMALLEST_SHARE = -40
_LOG2_E = 1 / math.log(2)
"""Exponents are in bits: on CPU torch's exp2 takes a quarter of the time of its exp, which asks
MKL."""
_HEADROOM = 14
"""float16 is equally exact from 2^14 to 2^-14, so the largest number of a chunk is stored as 2^14;
where bent as 2^11, times its slope."""


class Scoring(NamedTuple):
    """How cosines with other classes become a loss."""

    scale: float
    bend: Bend | None = None
    binary: bool = False
    """Logistic losses that add up, in place of a softmax."""
    largest_logit: float = 1.0


class Kept(NamedTuple):
    """What walk 1 hands to walk 2 of one chunk; the last three only if stored."""

    inverse_Kn: Tensor
    """1 / |row| of each sub-centre."""
    bits_B: Tensor | None = None
    """float32: the sample's unit, in bits."""
    slopes_Bn: Tensor | None = None
    """float16: exp(s f(z)) f'(z) in the sample's unit, of a binary loss sigmoid(s f(z)) f'(z); 0 at
    the target."""
    nearer: tuple[Tensor, ...] = ()
    """uint8 [B, n] for each sub-centre but the first: 1 where it is nearer than all before it."""


class Negatives(NamedTuple):
    """Of one rank's columns without the targets'."""

    sum_B: Tensor
    """float64: sum of exp(s z), for s up to 512 within its range; of a binary loss that of log(1 +
    exp(s z))."""
    pull_B: Tensor | None
    """float64: of a binary loss, the sum of the summands' derivatives by s z; of a softmax they are
    the summands."""
    kept: list[Kept]


class Targets(NamedTuple):
    """Of the batch's samples, those whose class is here."""

    cosine_B: Tensor
    """float64; 0 elsewhere."""
    owners_B: Tensor
    """float64: 1 here."""
    nearest_B: Tensor
    """int64: sub-centre that counts."""


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
    log_pull_B: Tensor
    """log of the sum of the derivatives by s z over all ranks; of a softmax, of the sum of
    exponentials."""
    log_factor_B: Tensor
    """d loss / d f = exp(s f + log_factor) off the target; of a binary loss sigmoid(s f)
    exp(log_factor)."""
    d_target_B: Tensor
    """d loss / d z at the target."""
    d_norm_B: Tensor | None
    """d loss / d |embedding|, where a margin looks at it."""
    d_bias: Tensor
    """d loss / d a number added to all logits, float64 []; of a binary loss."""


class _Block:
    """The rows of a chunk, and which of its columns a sample's sum is over."""

    def __init__(
        self, planes: Sequence[Rows], chunk: Chunk, columns: Columns, inverse_Kn: Tensor
    ) -> None:
        """`inverse_Kn` as in `Kept`."""
        self.rows = [plane.take(chunk.ids) for plane in planes]
        self.inverse_Kn = inverse_Kn
        column_B = columns.targets_B - chunk.first
        self.own_here_B1 = ((column_B >= 0) & (column_B < len(chunk)))[:, None]
        self.own_B1 = torch.where(self.own_here_B1, column_B[:, None], 0)
        self.space_B = columns.space_B
        self.met_Sn: Tensor | None = None
        """1 where samples of that label space meet the class, else 0; None where all meet all. By
        arithmetic, as `margins.above`."""
        if chunk.absent_n is not None:
            self.met_Sn = (~chunk.absent_n).float()[None]
        if chunk.space_n is not None and columns.spaces_S1 is not None:
            same_Sn = (chunk.space_n == columns.spaces_S1).float()
            self.met_Sn = same_Sn if self.met_Sn is None else same_Sn.mul_(self.met_Sn)

    def set_own_(self, scores_Bn: Tensor, value_B1: Tensor | float) -> None:
        scores_Bn.scatter_(
            1,
            self.own_B1,
            torch.where(self.own_here_B1, value_B1, scores_Bn.gather(1, self.own_B1)),
        )

    def leave_out_(self, logits_Bn: Tensor, *, own: bool) -> None:
        """Logits of what is not met, and of the sample's own class, become -inf."""
        if self.met_Sn is not None:
            log_Sn = self.met_Sn.log()
            logits_Bn += log_Sn if self.space_B is None else log_Sn.index_select(0, self.space_B)
        if own:
            self.set_own_(logits_Bn, -math.inf)

    def cosines(self, unit_BD: Tensor) -> Tensor:
        """With the nearest sub-centre of each class [B, n]."""
        return reduce(
            lambda best_Bn, other_Bn: torch.maximum(best_Bn, other_Bn, out=best_Bn),
            self._planes(unit_BD),
        )

    def nearest(self, unit_BD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Likewise, and `Kept.nearer` in float32."""
        planes, nearer = self._planes(unit_BD), []
        best_Bn = next(planes)
        for other_Bn in planes:
            nearer.append(above(other_Bn, best_Bn))
            torch.maximum(best_Bn, other_Bn, out=best_Bn)
        return best_Bn, tuple(nearer)

    def _planes(self, unit_BD: Tensor) -> Iterator[Tensor]:
        return (
            times_transposed(unit_BD, rows_nD).mul_(inverse_n)
            for rows_nD, inverse_n in zip(self.rows, self.inverse_Kn, strict=True)
        )


class _Scores(NamedTuple):
    """Of one chunk, float32 [B, n]."""

    values_Bn: Tensor
    slopes_Bn: Tensor | None = None
    """d f / d z, where classes are bent and slopes are asked for."""
    nearer: tuple[Tensor, ...] = ()
    """`Kept.nearer` in float32, where slopes are asked for."""


def _logits(block: _Block, unit_BD: Tensor, bend: Bend | None, *, slopes: bool) -> _Scores:
    """f(z)."""
    cosines_Bn, nearer = block.nearest(unit_BD) if slopes else (block.cosines(unit_BD), ())
    if bend is None:
        return _Scores(cosines_Bn, None, nearer)
    return _Scores(*bend.both(cosines_Bn), nearer) if slopes else _Scores(bend.logit(cosines_Bn))


def _exponents(
    block: _Block, unit_BD: Tensor, scoring: Scoring, offset_B1: Tensor, *, slopes: bool
) -> _Scores:
    """s f(z) in bits and the offset, [B, 1] or [1, 1]."""
    bits = scoring.scale * _LOG2_E
    if scoring.bend is None and len(block.rows) == 1:  # norm, scale and offset in one pass
        dots_Bn = times_transposed(unit_BD, block.rows[0])
        return _Scores(torch.addcmul(offset_B1, dots_Bn, block.inverse_Kn[0] * bits, out=dots_Bn))
    scores = _logits(block, unit_BD, scoring.bend, slopes=slopes)
    return scores._replace(
        values_Bn=torch.add(offset_B1, scores.values_Bn, alpha=bits, out=scores.values_Bn)
    )


def sum_negatives(
    planes: Sequence[Rows], unit_BD: Tensor, columns: Columns, scoring: Scoring, *, store: bool
) -> Negatives:
    """Walk 1. `planes` hold the sub-centres: plane k the k-th row of every class."""
    fixed = scoring.scale * scoring.largest_logit <= LARGEST_FIXED_SCALE and not store
    sum_up = (
        _sum_logistic if scoring.binary else _sum_with_fixed_shift if fixed else _sum_with_own_shift
    )
    (sum_B, pull_B), kept = (
        torch.zeros(2, len(unit_BD), dtype=torch.float64, device=unit_BD.device),
        [],
    )
    # In one piece: small ones between large ones would scatter memory.
    inverse_norms = unit_BD.new_empty(len(planes), sum(map(len, columns.chunks)))
    for chunk in columns.chunks:
        block = _Block(
            planes, chunk, columns, inverse_norms[:, chunk.first : chunk.first + len(chunk)]
        )
        for plane, rows_nD, inverse_n in zip(planes, block.rows, block.inverse_Kn, strict=True):
            inverse_n.copy_(plane.inverse_norms(chunk.ids, rows_nD))
        part = sum_up(block, unit_BD, scoring, store)
        sum_B += part.sum_B
        pull_B += 0 if part.pull_B is None else part.pull_B
        kept += part.kept
    return Negatives(sum_B, pull_B if scoring.binary else None, kept)


def _sum_with_fixed_shift(
    block: _Block, unit_BD: Tensor, scoring: Scoring, store: bool
) -> Negatives:
    """Sums of exponentials, made as exp(s f - shift). Nothing is stored."""
    shift = scoring.scale * scoring.largest_logit - 60
    exponents_Bn = _exponents(
        block, unit_BD, scoring, unit_BD.new_full((1, 1), -shift * _LOG2_E), slopes=False
    ).values_Bn
    block.leave_out_(exponents_Bn, own=True)
    return Negatives(
        exponents_Bn.exp2_().sum(1).double() * math.exp(shift), None, [Kept(block.inverse_Kn)]
    )


def _sum_with_own_shift(block: _Block, unit_BD: Tensor, scoring: Scoring, store: bool) -> Negatives:
    """Likewise in the unit of each sample's largest one."""
    bits = scoring.scale * _LOG2_E
    scores = _logits(block, unit_BD, scoring.bend, slopes=store)
    logits_Bn = scores.values_Bn
    block.leave_out_(logits_Bn, own=True)
    bits_B = (
        logits_Bn.amax(1).clamp_(min=-1) * bits - _HEADROOM + 3 * (scoring.bend is not None)
    )  # -inf where there is nothing but the target
    # Rounded once: 200 bits would leave 1e-5 of error.
    powers_Bn = torch.add(-bits_B[:, None], logits_Bn, alpha=bits, out=logits_Bn).exp2_()
    sum_B = powers_Bn.sum(1).double() * bits_B.double().exp2_()
    return Negatives(
        sum_B, None, [_keep(block, scores, powers_Bn, bits_B) if store else Kept(block.inverse_Kn)]
    )


def _sum_logistic(block: _Block, unit_BD: Tensor, scoring: Scoring, store: bool) -> Negatives:
    """Sums of log(1 + exp(s f)) and of their derivatives."""
    scores = _logits(block, unit_BD, scoring.bend, slopes=store)
    logits_Bn = scores.values_Bn.mul_(scoring.scale)
    block.leave_out_(logits_Bn, own=True)
    sum_B = torch.nn.functional.softplus(logits_Bn).sum(1).double()
    pulls_Bn = logits_Bn.sigmoid_()
    pull_B = pulls_Bn.sum(1).double()
    if not store:
        return Negatives(sum_B, pull_B, [Kept(block.inverse_Kn)])
    bits_B = (
        pulls_Bn.amax(1).clamp_(min=2.0**-100).log2() - _HEADROOM + 3 * (scoring.bend is not None)
    )
    return Negatives(
        sum_B, pull_B, [_keep(block, scores, pulls_Bn.mul_(torch.exp2(-bits_B)[:, None]), bits_B)]
    )


def _keep(block: _Block, scores: _Scores, pulls_Bn: Tensor, bits_B: Tensor) -> Kept:
    """`pulls_Bn` are derivatives by s f, in units of 2^bits."""
    if scores.slopes_Bn is not None:
        pulls_Bn.mul_(scores.slopes_Bn)
    return Kept(
        block.inverse_Kn,
        bits_B,
        pulls_Bn.half(),
        tuple(each_Bn.to(torch.uint8) for each_Bn in scores.nearer),
    )


def targets(planes: Sequence[Rows], unit_BD: Tensor, labels_B: Tensor) -> Targets:
    """Cosines of the targets that are rows here, with the nearest sub-centre. `labels_B` are local
    row numbers.

    In float64 and normalised anew: the loss of a well-learnt sample is exp(L - t), so an error of t
    is a relative error of the loss.
    """
    here_B = (labels_B >= 0) & (labels_B < planes[0].num_rows)
    unit_BD = unit_BD.double()
    norms_B = torch.linalg.vector_norm(unit_BD, dim=1)
    cosines = []
    for plane in planes:
        own_BD = plane.take(torch.where(here_B, labels_B, plane.num_rows)).double()
        lengths_B = torch.linalg.vector_norm(own_BD, dim=1) * norms_B
        cosines.append((own_BD * unit_BD).sum(1) / lengths_B.clamp(min=SHORTEST))
    cosine_B, nearest_B = torch.stack(cosines).max(0)
    return Targets(torch.where(here_B, cosine_B, 0), here_B.double(), nearest_B)


def join(
    margin: Margin,
    negatives: Negatives,
    targets: Targets,
    norm_B: Tensor,
    valid_B: Tensor,
    scale: float,
    ranks: Ranks,
    more: Tensor,
) -> Outcome:
    """One sum over ranks; the rest is B numbers, the same on each. Where a margin looks first,
    targets are sums already. `more` is this rank's part of another loss, float64 []."""
    parts = [more.repeat(len(valid_B)), negatives.sum_B]
    if negatives.pull_B is not None:
        parts.append(negatives.pull_B)
    cosine_B, owners_B, _ = targets
    if not margin.looks_first:
        parts += [cosine_B, owners_B]
    summed = ranks.sum_(torch.stack(parts))
    sum_B, pull_B = summed[1], summed[1 + (negatives.pull_B is not None)]
    if not margin.looks_first:
        cosine_B, owners_B = summed[-2:]
    target = margin.target(cosine_B.clamp(-1, 1), norm_B)
    t_B, num_valid = scale * target.value_B, valid_B.double().sum().clamp(min=1)
    zero_B, d_bias = torch.zeros_like(t_B), torch.zeros_like(num_valid)
    if margin.binary is None:
        L_B = sum_B.log()
        loss_B = torch.logaddexp(L_B - t_B, zero_B)
        d_t_B = -torch.sigmoid(L_B - t_B) / num_valid
        log_factor_B = torch.log(scale / num_valid) - torch.logaddexp(L_B, t_B)
    else:
        own, others = margin.binary
        loss_B = own * torch.logaddexp(-t_B, zero_B) + others * sum_B
        d_t_B = -own * torch.sigmoid(-t_B) / num_valid
        log_factor_B = (scale * others / num_valid).log().expand_as(t_B)
        d_bias = torch.where(valid_B, others * pull_B / num_valid + d_t_B, 0).sum()
    d_norm_B = None if target.by_norm_B is None else scale * d_t_B * target.by_norm_B
    if target.extra_B is not None:
        loss_B = loss_B + target.extra_B
    if target.d_extra_B is not None:
        d_norm_B = target.d_extra_B / num_valid + (0 if d_norm_B is None else d_norm_B)
    loss = torch.where(valid_B, loss_B, 0).sum() / num_valid + summed[0, 0]
    finite, one_owner = loss.isfinite(), ((owners_B == 1) | ~valid_B).all()
    return Outcome(
        loss=loss,
        finite=finite,
        one_owner=one_owner,
        live_B=valid_B & finite & one_owner,
        log_pull_B=pull_B.log(),
        log_factor_B=log_factor_B,
        d_target_B=scale * d_t_B * target.slope_B,
        d_norm_B=d_norm_B,
        d_bias=d_bias,
    )


def descend(
    planes: Sequence[Rows],
    unit_BD: Tensor,
    columns: Columns,
    scoring: Scoring,
    outcome: Outcome,
    kept: list[Kept],
    nearest_B: Tensor,
    gate: Gate,
) -> Tensor:
    """Walk 2: updates the rows in place and returns this rank's part of d loss / d unit vectors,
    float32 [B, D], from the rows before."""
    if looking_is_free(unit_BD.device) and not outcome.live_B.any():
        return torch.zeros_like(unit_BD)
    # Samples that send no gradient are zeroed rather than multiplied by zero: they may be NaN.
    unit_BD = torch.where(outcome.live_B[:, None], unit_BD, 0)
    exponent_B, factor_B = exponents(outcome, scoring)
    weighted_BD, d_unit_BD = unit_BD * factor_B[:, None].float(), torch.zeros_like(unit_BD)
    for chunk, parts in zip(columns.chunks, kept, strict=True):
        block = _Block(planes, chunk, columns, parts.inverse_Kn)
        # Each sample's gradients are in a unit of its own, which multiplies what is B x D.
        if parts.slopes_Bn is None:
            d_scores_Bn, nearer = _slopes(block, unit_BD, scoring, exponent_B)
        else:
            d_scores_Bn, factor_B = _restore(block, unit_BD, parts, scoring, outcome)
            nearer = tuple(each_Bn.float() for each_Bn in parts.nearer)
            weighted_BD = unit_BD * factor_B[:, None].float()
        block.set_own_(
            d_scores_Bn,
            torch.where(outcome.live_B, outcome.d_target_B / factor_B, 0).float()[:, None],
        )
        for k in range(
            len(planes) - 1, -1, -1
        ):  # what is nearer than all before it and not than one behind it is nearest
            rows_nD, inverse_n, d_plane_Bn = block.rows[k], parts.inverse_Kn[k], d_scores_Bn
            if k > 0:
                block.set_own_(nearer[k - 1], (nearest_B == k).float()[:, None])
                d_plane_Bn = nearer[k - 1].mul_(d_scores_Bn)
                d_scores_Bn.sub_(d_plane_Bn)
            d_plane_Bn.mul_(inverse_n)
            d_unit_BD.addcmul_(times_transposed(d_plane_Bn, rows_nD.T), factor_B[:, None].float())
            planes[k].update_(
                chunk.ids,
                rows_nD,
                inverse_n,
                times_transposed(transposed(d_plane_Bn), weighted_BD.T),
                gate,
            )
    return d_unit_BD


def exponents(outcome: Outcome, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Of d loss / d f = factor x 2^(s f in bits + exponent) off the target: exponent, float32 [B],
    -inf for samples without a gradient, and factor, float64 [B]. A binary loss has no exponent."""
    whole_B = torch.zeros_like(outcome.log_factor_B)
    if not scoring.binary:
        # float32 holds an exponent of 90 to 4e-6 only, so its whole part goes in, exactly, and the
        # rest multiplies what is B x D.
        whole_B = (outcome.log_factor_B * _LOG2_E).round()
    factor_B = torch.where(outcome.live_B, torch.exp(outcome.log_factor_B - whole_B / _LOG2_E), 0)
    return torch.where(outcome.live_B, whole_B, -math.inf).float(), factor_B


def _slopes(
    block: _Block, unit_BD: Tensor, scoring: Scoring, exponent_B: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """d loss / d z off the targets [B, n], in the samples' units, and `Kept.nearer` in float32."""
    if scoring.binary:
        scores = _logits(block, unit_BD, scoring.bend, slopes=True)
        scores.values_Bn.mul_(scoring.scale)
    else:
        scores = _exponents(block, unit_BD, scoring, exponent_B[:, None], slopes=True)
    # Before the exponential: what is not met was in no sum, so nothing bounds it. The own class's
    # is set later.
    block.leave_out_(scores.values_Bn, own=False)
    slopes_Bn = scores.values_Bn.sigmoid_() if scoring.binary else scores.values_Bn.exp2_()
    return slopes_Bn if scores.slopes_Bn is None else slopes_Bn.mul_(
        scores.slopes_Bn
    ), scores.nearer


def _restore(
    block: _Block, unit_BD: Tensor, parts: Kept, scoring: Scoring, outcome: Outcome
) -> tuple[Tensor, Tensor]:
    """d loss / d z off the targets [B, n] from what walk 1 stored, and each sample's unit of them,
    float64 [B]."""
    assert parts.slopes_Bn is not None
    assert parts.bits_B is not None
    d_scores_Bn = parts.slopes_Bn.float()
    log_share_B = parts.bits_B.double() / _LOG2_E - outcome.log_pull_B
    if looking_is_free(d_scores_Bn.device):  # elsewhere float16 has to do
        plain = scoring.bend is None and not scoring.binary
        big = BIG_SHARE if plain else BIG_SHARE / 4
        samples_k = (log_share_B + _HEADROOM / _LOG2_E > math.log(big)).nonzero()[:, 0]
        sizes_kn = d_scores_Bn[samples_k] if plain else d_scores_Bn[samples_k].abs_()
        big_kn = sizes_kn > (big * torch.exp(-log_share_B[samples_k]))[:, None]
        turns_m, columns_m = big_kn.nonzero(as_tuple=True)
        samples_m = samples_k[turns_m]
        d_scores_Bn[samples_m, columns_m] = _slopes_at(
            block.rows, unit_BD, parts, scoring, samples_m, columns_m
        )
    else:
        d_scores_Bn.masked_fill_(~outcome.live_B[:, None], 0)
    # NaN where there are no negatives at all, and nothing to scale.
    log_unit_B = (
        log_share_B.clamp(min=_LOG_SMALLEST_SHARE) + outcome.log_pull_B + outcome.log_factor_B
    ).nan_to_num(nan=0.0)
    return d_scores_Bn, torch.where(outcome.live_B, log_unit_B.exp(), 0)


def _slopes_at(
    rows: Sequence[Tensor],
    unit_BD: Tensor,
    parts: Kept,
    scoring: Scoring,
    samples_m: Tensor,
    columns_m: Tensor,
) -> Tensor:
    """What walk 1 stored, in float32, of single places."""
    assert parts.bits_B is not None
    nearest_m = torch.zeros_like(samples_m)
    for k, nearer_Bn in enumerate(parts.nearer, 1):
        nearest_m[nearer_Bn[samples_m, columns_m] > 0] = k
    own_mD = rows[0][columns_m] if len(rows) == 1 else torch.stack(list(rows))[nearest_m, columns_m]
    cosines_m: Tensor = (
        torch.linalg.vecdot(unit_BD[samples_m], own_mD) * parts.inverse_Kn[nearest_m, columns_m]
    ).double()
    slopes_m: Tensor = cosines_m.new_ones(())
    if scoring.bend is not None:
        cosines_m, slopes_m = scoring.bend.of(samples_m).both(cosines_m)
    logits_m = scoring.scale * cosines_m
    bits_m = parts.bits_B[samples_m]
    if scoring.binary:
        return logits_m.sigmoid_().mul_(slopes_m).mul_(torch.exp2(-bits_m)).float()
    return logits_m.mul_(_LOG2_E).sub_(bits_m).exp2_().mul_(slopes_m).float()
