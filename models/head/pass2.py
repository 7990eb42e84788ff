"""Pass 2 over the class rows: gradients of the unit embeddings and of the rows, and the rows'
update, chunk by chunk.

Shapes as in `passes.py`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from manyfaces.models.head import devices, stored_scores
from manyfaces.models.head.chunk_scores import ChunkRows, Scores
from manyfaces.models.head.loss import split_factor
from manyfaces.models.head.passes import ChunkCache, GlobalLoss, PassInputs, Scoring
from manyfaces.models.head.products import times_transposed, transposed
from manyfaces.models.head.rows import StepMask


def update_rows(
    inputs: PassInputs,
    loss: GlobalLoss,
    chunks: list[ChunkCache],
    sub_center_B: Tensor,
    mask: StepMask,
) -> Tensor:
    """Update the rows in place, and return this rank's part of d loss / d unit vectors, float32
    [B, D], by the rows as they were before. `chunks` is what pass 1 kept, `sub_center_B` as in
    `TargetCosines`."""
    sub_centers, unit_BD, columns, scoring = inputs
    if devices.host_sync_is_free(unit_BD.device) and not loss.active_B.any():
        return torch.zeros_like(unit_BD)
    # Samples that send no gradient are zeroed rather than multiplied by zero: they may be NaN.
    unit_BD = torch.where(loss.active_B[:, None], unit_BD, 0)
    exponent_B, factor_B = split_factor(loss, scoring)
    # Each sample's gradients are in a unit of its own, which multiplies what is B x D.
    scaled_BD, d_unit_BD = unit_BD * factor_B[:, None].float(), torch.zeros_like(unit_BD)
    for chunk, cache in zip(columns.chunks, chunks, strict=True):
        rows = ChunkRows(sub_centers, chunk, columns, cache.inverse_norms_Kn)
        if cache.derivatives_Bn is None:
            d_scores = _score_again(rows, unit_BD, scoring, exponent_B)
        else:
            d_scores, factor_B = stored_scores.restore(rows, unit_BD, cache, scoring, loss)
            scaled_BD = unit_BD * factor_B[:, None].float()
        d_target_B = torch.where(loss.active_B, loss.d_target_B / factor_B, 0).float()
        rows.set_own_(d_scores.values_Bn, d_target_B[:, None])
        for k, d_dots_Bn in _by_sub_center(rows, d_scores, sub_center_B):
            d_dots_Bn.mul_(rows.inverse_norms_Kn[k])
            d_unit_part_BD = times_transposed(d_dots_Bn, rows.rows[k].T)
            d_unit_BD.addcmul_(d_unit_part_BD, factor_B[:, None].float())
            d_rows_nD = times_transposed(transposed(d_dots_Bn), scaled_BD.T)
            sub_centers[k].update_(
                chunk.ids, rows.rows[k], rows.inverse_norms_Kn[k], d_rows_nD, mask
            )
    return d_unit_BD


def _score_again(rows: ChunkRows, unit_BD: Tensor, scoring: Scoring, exponent_B: Tensor) -> Scores:
    """d loss / d z off the targets, in the samples' units; `slopes_Bn` are in it already."""
    if scoring.binary:
        scores = rows.logits(unit_BD, scoring.transform, slopes=True)
        scores.values_Bn.mul_(scoring.scale)
    else:
        scores = rows.exponents(unit_BD, scoring, exponent_B[:, None], slopes=True)
    # Before the exponential: what does not count was in no sum, so nothing bounds it. The own
    # class's is set later.
    rows.exclude_(scores.values_Bn, own=False)
    d_scores_Bn = scores.values_Bn.sigmoid_() if scoring.binary else scores.values_Bn.exp2_()
    if scores.slopes_Bn is not None:
        d_scores_Bn.mul_(scores.slopes_Bn)
    return scores


def _by_sub_center(
    rows: ChunkRows, d_scores: Scores, sub_center_B: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The number of each sub-centre, from the last to the first, and the gradient at its cosines
    [B, n], which goes to the nearest one. Overwrites `d_scores`."""
    # A sub-centre that is nearer than all before it, and not beaten by one behind it, is nearest.
    for k in range(len(rows.rows) - 1, 0, -1):
        is_nearest_Bn = d_scores.nearer[k - 1]
        rows.set_own_(is_nearest_Bn, (sub_center_B == k).float()[:, None])
        d_cosines_Bn = is_nearest_Bn.mul_(d_scores.values_Bn)
        d_scores.values_Bn.sub_(d_cosines_Bn)
        yield k, d_cosines_Bn
    yield 0, d_scores.values_Bn
