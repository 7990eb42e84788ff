"""Scores that pass 1 keeps for pass 2 in 16 bits (`head.logits: store16`).

Stored is the derivative of the sample's sum by z, in a unit of the sample's own: float16 is equally
exact from 2^14 to 2^-14. Large probabilities are computed anew, where the host can look for them
without waiting.

Shapes as in `passes.py`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manyfaces.models.head import devices
from manyfaces.models.head.chunk_scores import ChunkRows, Scores
from manyfaces.models.head.passes import LOG2_E, ChunkCache, GlobalLoss, Scoring

LARGEST_STORED_PROBABILITY = 1 / 256
"""Probabilities above this are computed anew in pass 2. float16 leaves an error of 2e-4 of each; of
all below, 1/16 of that in norm. Where slopes or logistic losses come in, that is not little enough
beside all, and it is a quarter of this."""
_LOG_SMALLEST_PROBABILITY = -40
_HEADROOM_BITS = 14
_SLOPE_BITS = 3


def unit_bits(largest_bits_B: Tensor, scoring: Scoring) -> Tensor:
    """log2 of the unit in which each sample's derivatives are stored, whose largest is
    2^largest_bits: that one is stored as 2^14. Where slopes come in, which may be larger than 1,
    three bits are left for those."""
    return largest_bits_B - _HEADROOM_BITS + _SLOPE_BITS * (scoring.transform is not None)


def store(
    inverse_norms_Kn: Tensor, scores: Scores, derivatives_Bn: Tensor, unit_bits_B: Tensor
) -> ChunkCache:
    """Keep `derivatives_Bn`, the derivatives by s f in units of 2^unit_bits, which are overwritten;
    those by s z are stored."""
    if scores.slopes_Bn is not None:
        derivatives_Bn.mul_(scores.slopes_Bn)
    nearer = tuple(nearer_Bn.to(torch.uint8) for nearer_Bn in scores.nearer)
    return ChunkCache(inverse_norms_Kn, unit_bits_B, derivatives_Bn.half(), nearer)


def restore(
    rows: ChunkRows, unit_BD: Tensor, cache: ChunkCache, scoring: Scoring, loss: GlobalLoss
) -> tuple[Scores, Tensor]:
    """d loss / d z off the targets (`values_Bn`) from what pass 1 stored, and each sample's unit of
    them, float64 [B]."""
    assert cache.derivatives_Bn is not None
    assert cache.unit_bits_B is not None
    d_scores_Bn = cache.derivatives_Bn.float()
    # The log of the probability that a stored 1 stands for.
    log_probability_B = cache.unit_bits_B.double() / LOG2_E - loss.log_derivative_B
    # Samples that send no gradient may be NaN.
    if devices.host_sync_is_free(d_scores_Bn.device):
        samples_m, columns_m = _large(d_scores_Bn, log_probability_B, scoring)
        d_scores_Bn[samples_m, columns_m] = _derivatives_at(
            rows.rows, unit_BD, cache, scoring, samples_m, columns_m
        )
        d_scores_Bn.index_fill_(0, (~loss.active_B).nonzero()[:, 0], 0)
    else:  # float16 has to do
        d_scores_Bn.masked_fill_(~loss.active_B[:, None], 0)
    # NaN where there are no negatives at all, and nothing to scale.
    log_unit_B = (
        log_probability_B.clamp(min=_LOG_SMALLEST_PROBABILITY)
        + loss.log_derivative_B
        + loss.log_factor_B
    ).nan_to_num(nan=0.0)
    factor_B = torch.where(loss.active_B, log_unit_B.exp(), 0)
    nearer = tuple(nearer_Bn.float() for nearer_Bn in cache.nearer)
    return Scores(d_scores_Bn, nearer=nearer), factor_B


def _large(stored_Bn: Tensor, log_probability_B: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Samples and columns, int64 [m] each, whose probability is too large for 16 bits."""
    is_plain = scoring.transform is None and not scoring.binary
    limit = LARGEST_STORED_PROBABILITY if is_plain else LARGEST_STORED_PROBABILITY / 4
    # Only samples whose largest may be: no stored number exceeds 2^headroom.
    may_be_B = log_probability_B + _HEADROOM_BITS / LOG2_E > math.log(limit)
    samples_k = may_be_B.nonzero()[:, 0]
    sizes_kn = stored_Bn[samples_k] if is_plain else stored_Bn[samples_k].abs_()
    large_kn = sizes_kn > (limit * torch.exp(-log_probability_B[samples_k]))[:, None]
    places_m, columns_m = large_kn.nonzero(as_tuple=True)
    return samples_k[places_m], columns_m


def _derivatives_at(
    rows: Sequence[Tensor],
    unit_BD: Tensor,
    cache: ChunkCache,
    scoring: Scoring,
    samples_m: Tensor,
    columns_m: Tensor,
) -> Tensor:
    """What pass 1 stored at single places, in float32 [m]."""
    assert cache.unit_bits_B is not None
    nearest_m = torch.zeros_like(samples_m)
    for k, nearer_Bn in enumerate(cache.nearer, 1):
        nearest_m[nearer_Bn[samples_m, columns_m] > 0] = k
    if len(rows) == 1:
        rows_mD = rows[0][columns_m]
    else:
        rows_mD = torch.stack(list(rows))[nearest_m, columns_m]
    cosines_m: Tensor = (
        torch.linalg.vecdot(unit_BD[samples_m], rows_mD)
        * cache.inverse_norms_Kn[nearest_m, columns_m]
    ).double()
    slopes_m: Tensor = cosines_m.new_ones(())
    if scoring.transform is not None:
        transform = scoring.transform.for_samples(samples_m)
        cosines_m, slopes_m = transform.logits_and_slopes(cosines_m)
    logits_m = scoring.scale * cosines_m
    unit_bits_m = cache.unit_bits_B[samples_m]
    if scoring.binary:
        return logits_m.sigmoid_().mul_(slopes_m).mul_(torch.exp2(-unit_bits_m)).float()
    return logits_m.mul_(LOG2_E).sub_(unit_bits_m).exp2_().mul_(slopes_m).float()
