"""The two passes by Triton's kernels, for CUDA. The torch passes (`pass1.py`, `pass2.py`) and
`row_optimizers.py` say what is right, and run where the kernels do not.

Gradients are products of bfloat16, whatever the rows: exact to some 1e-3, where the torch passes
are to 1e-6. Shapes as in `passes.py`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from manyfaces.models.head import kernels
from manyfaces.models.head.loss import split_factor
from manyfaces.models.head.passes import (
    LOG2_E,
    ChunkCache,
    GlobalLoss,
    NegativeSums,
    Passes,
    PassInputs,
)
from manyfaces.models.head.row_optimizers import RowwiseRows, SGDRows
from manyfaces.models.head.rows import Rows, StepMask
from manyfaces.models.head.sampling import Chunk

BLOCK_B, BLOCK_N, BLOCK_BYTES = 128, 128, 128
"""A tile's samples and columns, and the bytes of each row that are multiplied at a time: fits cards
of 99 KiB shared memory a program."""
_PROGRAMS = 2048
"""How many programs pass 1 starts: each takes every so many-th tile of columns, enough of them to
fill a card several times."""


class ChunkArguments:
    """A chunk as the kernels take it."""

    def __init__(self, rows: Rows, chunk: Chunk, targets_B: Tensor, scale: float) -> None:
        """`targets_B` as in `Columns`."""
        self.ids = chunk.ids
        has_ids = isinstance(chunk.ids, Tensor)
        unused = targets_B  # a pointer to something, where there is nothing to point to
        self.ids_or_unused = chunk.ids if isinstance(chunk.ids, Tensor) else unused
        self.start = 0 if isinstance(chunk.ids, Tensor) else chunk.ids.start
        self.excluded = unused if chunk.excluded_n is None else chunk.excluded_n.view(torch.int8)
        self.target_B = targets_B - chunk.first
        self.n, self.D, self.bits_per_cosine = len(chunk), rows.rows_CD.shape[1], scale * LOG2_E
        self.tile: dict[str, Any] = {
            "D": self.D,
            "HAS_IDS": has_ids,
            "HAS_EXCLUDED": chunk.excluded_n is not None,
            "BLOCK_B": BLOCK_B,
            "BLOCK_N": BLOCK_N,
            "BLOCK_D": BLOCK_BYTES // rows.rows_CD.element_size(),
            "num_warps": 8,
        }


def sum_negatives(inputs: PassInputs, *, store: bool, nearest: bool) -> NegativeSums:
    """Pass 1, as `pass1.sum_negatives`; nothing can be stored."""
    assert not store, "to store would save less here than it costs"
    (rows,), unit_BD, columns, scoring = inputs
    B, unit_BD = len(unit_BD), unit_BD.to(rows.dtype).contiguous()
    sum_B = torch.zeros(B, dtype=torch.float64, device=unit_BD.device)
    nearest_B = torch.full((B,), -math.inf, device=unit_BD.device) if nearest else None
    chunks = []
    for chunk in columns.chunks:
        call = ChunkArguments(rows, chunk, columns.targets_B, scoring.scale)
        inverse_norms_n = rows.inverse_norms(chunk.ids)
        tiles_B = _num_blocks(B, BLOCK_B)
        shares = max(1, min(_num_blocks(call.n, BLOCK_N), _PROGRAMS // tiles_B))
        top_SB, sums_SB = (torch.empty(shares, B, device=unit_BD.device) for _ in range(2))
        kernels.sum_exponentials[tiles_B, shares](
            unit_BD, rows.rows_CD, call.ids_or_unused, inverse_norms_n, call.excluded,
            call.target_B, top_SB, sums_SB, B, call.n, call.start, call.bits_per_cosine,
            **call.tile,
        )  # fmt: skip
        sum_B += (sums_SB.double() * top_SB.double().exp2()).sum(0)
        if nearest_B is not None:
            # The largest exponent is a cosine in bits; without any class that counts the sum is 0.
            cosines_SB = torch.where(sums_SB > 0, top_SB / call.bits_per_cosine, -math.inf)
            nearest_B = torch.maximum(nearest_B, cosines_SB.amax(0))
        chunks.append(ChunkCache(inverse_norms_n[None]))
    return NegativeSums(sum_B, None, nearest_B, chunks)


def update_rows(
    inputs: PassInputs,
    loss: GlobalLoss,
    chunks: list[ChunkCache],
    sub_center_B: Tensor,
    mask: StepMask,
) -> Tensor:
    """Pass 2, as `pass2.update_rows`."""
    (rows,), unit_BD, columns, scoring = inputs
    B = len(unit_BD)
    unit_BD = torch.where(loss.active_B[:, None], unit_BD, 0)
    typed_BD, d_unit_BD = unit_BD.to(rows.dtype).contiguous(), torch.zeros_like(unit_BD)
    exponent_B, factor_B = split_factor(loss, scoring)
    d_target_B = torch.where(loss.active_B, loss.d_target_B / factor_B, 0).float()
    factor_B1 = factor_B.float()[:, None]
    scaled_BD = (unit_BD * factor_B1).bfloat16()
    for chunk, cache in zip(columns.chunks, chunks, strict=True):
        call = ChunkArguments(rows, chunk, columns.targets_B, scoring.scale)
        inverse_norms_n = cache.inverse_norms_Kn[0]
        d_dots_Bn = unit_BD.new_empty(B, call.n, dtype=torch.bfloat16)
        kernels.score_gradients[_num_blocks(B, BLOCK_B), _num_blocks(call.n, BLOCK_N)](
            typed_BD, rows.rows_CD, call.ids_or_unused, inverse_norms_n, call.excluded,
            call.target_B, exponent_B, d_target_B, d_dots_Bn, B, call.n, call.start,
            call.bits_per_cosine, **call.tile,
        )  # fmt: skip
        d_unit_BD.addcmul_(_product(d_dots_Bn, rows.take(chunk.ids).bfloat16()), factor_B1)
        d_rows_nD = _product(d_dots_Bn.T, scaled_BD)
        update_chunk_(rows, call, inverse_norms_n, d_rows_nD, mask)
    return d_unit_BD


def update_chunk_(
    rows: Rows, call: ChunkArguments, inverse_norms_n: Tensor, d_rows_nD: Tensor, mask: StepMask
) -> None:
    """Update the rows of a chunk, as `Rows.update_`; by torch's operations where the optimiser has
    no kernel."""
    if not isinstance(rows, SGDRows | RowwiseRows):
        rows.update_(call.ids, rows.take(call.ids), inverse_norms_n, d_rows_nD, mask)
        return
    rows.tell_change(call.ids)
    dropped, noise = rows.rounding_noise(mask.position)
    constants: dict[str, Any] = {
        "D": call.D,
        "HAS_IDS": call.tile["HAS_IDS"],
        "HAS_LOCAL_IDS": rows.local_ids_C is not None,
        "NOISE_ROWS": len(noise),
        "DROPPED": dropped,
        "BLOCK_D": 1 << (call.D - 1).bit_length(),
    }
    local_ids = noise if rows.local_ids_C is None else rows.local_ids_C
    arguments = (
        d_rows_nD, call.ids_or_unused, inverse_norms_n, noise, local_ids,
        mask.applied.view(torch.int8), mask.lr, rows.config.momentum, mask.weight_decay,
        call.start, rows.lo,
    )  # fmt: skip
    if isinstance(rows, SGDRows):
        momenta = rows.rows_CD if rows.momentum_CD is None else rows.momentum_CD
        constants["HAS_MOMENTUM"] = rows.momentum_CD is not None
        kernels.update_sgd[call.n,](rows.rows_CD, momenta, *arguments, **constants)
    else:
        kernels.update_rowwise[call.n,](
            rows.rows_CD, rows.lengths_C, rows.inverse_norms_C, *arguments, **constants
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, of 16-bit numbers; the CPU, which only tests come to, has no such
    product."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _num_blocks(count: int, block: int) -> int:
    return -(-count // block)


TRITON_PASSES = Passes(sum_negatives, update_rows)
