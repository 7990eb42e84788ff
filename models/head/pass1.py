"""Pass 1 over the class rows: the sums over other classes that the loss is made of, and what pass 2
needs of each chunk.

Shapes as in `passes.py`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head import stored_scores
from manyfaces.models.head.chunk_scores import ChunkRows
from manyfaces.models.head.passes import LOG2_E, ChunkCache, NegativeSums, PassInputs, Scoring

LARGEST_FIXED_SCALE = 73.0
"""Up to here exp(s z - (s - 60)) stays within float32 for all cosines, and for sums of 1e12 of
them; above, each chunk has its maximum."""


class _Request(NamedTuple):
    """What is asked of pass 1 besides the sums."""

    store: bool
    """Whether to keep the derivatives in 16 bits."""
    nearest: bool
    """Whether to find the nearest other class."""


def sum_negatives(inputs: PassInputs, *, store: bool, nearest: bool) -> NegativeSums:
    """Sum over all columns but the targets'. `store` keeps 16 bits of each score for pass 2,
    `nearest` gives `NegativeSums.nearest_B` too."""
    sub_centers, unit_BD, columns, scoring = inputs
    if scoring.binary:
        sum_chunk = _sum_logistic
    elif scoring.scale * scoring.largest_logit <= LARGEST_FIXED_SCALE and not store:
        sum_chunk = _sum_with_fixed_shift
    else:
        sum_chunk = _sum_with_own_shift
    sum_B, derivative_B = torch.zeros(2, len(unit_BD), dtype=torch.float64, device=unit_BD.device)
    nearest_B = unit_BD.new_full((len(unit_BD),), -math.inf) if nearest else None
    chunks: list[ChunkCache] = []
    # In one piece: small ones between large ones would scatter memory.
    inverse_norms = unit_BD.new_empty(len(sub_centers), sum(map(len, columns.chunks)))
    for chunk in columns.chunks:
        inverse_norms_Kn = inverse_norms[:, chunk.first : chunk.first + len(chunk)]
        chunk_rows = ChunkRows(sub_centers, chunk, columns, inverse_norms_Kn)
        for rows, rows_nD, inverse_norms_n in zip(
            sub_centers, chunk_rows.rows, inverse_norms_Kn, strict=True
        ):
            inverse_norms_n.copy_(rows.inverse_norms(chunk.ids, rows_nD))
        part = sum_chunk(chunk_rows, unit_BD, scoring, _Request(store, nearest))
        sum_B += part.sum_B
        if part.derivative_B is not None:
            derivative_B += part.derivative_B
        if nearest_B is not None and part.nearest_B is not None:
            nearest_B = torch.maximum(nearest_B, part.nearest_B)
        chunks += part.chunks
    return NegativeSums(sum_B, derivative_B if scoring.binary else None, nearest_B, chunks)


def _sum_with_fixed_shift(
    rows: ChunkRows, unit_BD: Tensor, scoring: Scoring, request: _Request
) -> NegativeSums:
    """Sums of exponentials, made as exp(s f - shift); nothing is stored."""
    shift = scoring.scale * scoring.largest_logit - 60
    offset_11 = unit_BD.new_full((1, 1), -shift * LOG2_E)
    scores = rows.exponents(unit_BD, scoring, offset_11, nearest=request.nearest)
    exponents_Bn = scores.values_Bn
    rows.exclude_(exponents_Bn, own=True)
    sum_B = exponents_Bn.exp2_().sum(1).double() * math.exp(shift)
    return NegativeSums(sum_B, None, scores.nearest_B, [ChunkCache(rows.inverse_norms_Kn)])


def _sum_with_own_shift(
    rows: ChunkRows, unit_BD: Tensor, scoring: Scoring, request: _Request
) -> NegativeSums:
    """Sums of exponentials, made in the unit of each sample's largest one."""
    bits = scoring.scale * LOG2_E
    scores = rows.logits(unit_BD, scoring.transform, slopes=request.store, nearest=request.nearest)
    logits_Bn = scores.values_Bn
    rows.exclude_(logits_Bn, own=True)
    # -inf where there is nothing but the target.
    largest_B = logits_Bn.amax(1).clamp_(min=-1)
    unit_bits_B = stored_scores.unit_bits(largest_B * bits, scoring)
    # Rounded once: 200 bits would leave 1e-5 of error.
    powers_Bn = torch.add(-unit_bits_B[:, None], logits_Bn, alpha=bits, out=logits_Bn).exp2_()
    sum_B = powers_Bn.sum(1).double() * unit_bits_B.double().exp2_()
    if request.store:
        cache = stored_scores.store(rows.inverse_norms_Kn, scores, powers_Bn, unit_bits_B)
    else:
        cache = ChunkCache(rows.inverse_norms_Kn)
    return NegativeSums(sum_B, None, scores.nearest_B, [cache])


def _sum_logistic(
    rows: ChunkRows, unit_BD: Tensor, scoring: Scoring, request: _Request
) -> NegativeSums:
    """Sums of log(1 + exp(s f)) and of their derivatives."""
    scores = rows.logits(unit_BD, scoring.transform, slopes=request.store, nearest=request.nearest)
    logits_Bn = scores.values_Bn.mul_(scoring.scale)
    rows.exclude_(logits_Bn, own=True)
    sum_B = torch.nn.functional.softplus(logits_Bn).sum(1).double()
    derivatives_Bn = logits_Bn.sigmoid_()
    derivative_B = derivatives_Bn.sum(1).double()
    cache = ChunkCache(rows.inverse_norms_Kn)
    if request.store:
        largest_bits_B = derivatives_Bn.amax(1).clamp_(min=2.0**-100).log2()
        unit_bits_B = stored_scores.unit_bits(largest_bits_B, scoring)
        derivatives_Bn.mul_(torch.exp2(-unit_bits_B)[:, None])
        cache = stored_scores.store(rows.inverse_norms_Kn, scores, derivatives_Bn, unit_bits_B)
    return NegativeSums(sum_B, derivative_B, scores.nearest_B, [cache])
