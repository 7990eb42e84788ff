"""Triton kernels of the head's two walks, for CUDA. `softmax.py` and `row_optimizers.py` are their
oracle, and what runs where they do not.

Walk 1 makes a tile of products, its exponentials and their sums in one go: logits never reach
memory. Walk 2 makes the tile again and writes d loss / d z of one chunk in bfloat16, for two
products by cuBLAS; one pass then updates rows, state and norms. Scores are products of float16 or
bfloat16 as the rows have them, of float32 rows by three TF32 products (one alone cuts bits off: all
cosines come out too small). Gradients are products of bfloat16, whatever the rows: exact to some
1e-3, where the torch code is to 1e-6.

Shapes as in `softmax.py`; a program's tile is BLOCK_B samples by BLOCK_N columns.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from manyfaces.models.head import passes as softmax
from manyfaces.models.head.passes import Kept, Negatives, Outcome, Scoring
from manyfaces.models.head.row_optimizers import RowwiseRows, SGDRows
from manyfaces.models.head.rows import Gate, Rows
from manyfaces.models.head.sampling import Chunk, Columns

_LOG2_E = 1 / math.log(2)
BLOCK_B, BLOCK_N, BLOCK_BYTES = 128, 128, 128
"""A tile's samples and columns, and the bytes of each row that are multiplied at a time: fits cards
of 99 KiB shared memory a program."""
_PROGRAMS = 2048
"""Of walk 1: each takes every so many-th tile of columns, enough of them to fill a card several
times."""


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    unit,
    rows,
    samples,
    columns,
    ids,
    B,
    n,
    start,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products [BLOCK_B, BLOCK_N] of samples and the rows of columns, float32."""
    row = columns.to(tl.int64)
    row = tl.load(ids + row, mask=columns < n, other=0) if HAS_IDS else row + start
    dots = tl.zeros((samples.shape[0], columns.shape[0]), tl.float32)
    for first in range(0, D, BLOCK_D):
        dims = first + tl.arange(0, BLOCK_D)
        u = tl.load(
            unit + samples[:, None] * D + dims[None, :],
            mask=(samples < B)[:, None] & (dims < D)[None, :],
            other=0,
        )
        w = tl.load(
            rows + row[None, :] * D + dims[:, None],
            mask=(columns < n)[None, :] & (dims < D)[:, None],
            other=0,
        )
        dots = tl.dot(u, w, dots, input_precision="tf32x3")
    return dots


@triton.jit
def _sum_exponentials(  # type: ignore[no-untyped-def]
    unit,
    rows,
    ids,
    inverse_norms,
    absent,
    target,
    top_out,
    sum_out,
    B,
    n,
    start,
    bits_per_cosine,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_ABSENT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """For its samples and its share of the column tiles: the largest exponent off the target, and
    the sum of 2^(exponent - largest)."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    target_b = tl.load(target + samples, mask=samples < B, other=-1)
    top_b = tl.full((BLOCK_B,), -bits_per_cosine, tl.float32)
    sum_b = tl.zeros((BLOCK_B,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(n, BLOCK_N), tl.num_programs(1)):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        dots = _tile(unit, rows, samples, columns, ids, B, n, start, D, HAS_IDS, BLOCK_D)
        exponents = (
            dots
            * (tl.load(inverse_norms + columns, mask=columns < n, other=0) * bits_per_cosine)[
                None, :
            ]
        )
        counts = (columns < n)[None, :] & (columns[None, :] != target_b[:, None])
        if HAS_ABSENT:
            counts &= (tl.load(absent + columns, mask=columns < n, other=1) == 0)[None, :]
        exponents = tl.where(counts, exponents, float("-inf"))
        higher_b = tl.maximum(top_b, tl.max(exponents, 1))
        sum_b = sum_b * tl.exp2(top_b - higher_b) + tl.sum(
            tl.exp2(exponents - higher_b[:, None]), 1
        )
        top_b = higher_b
    tl.store(top_out + tl.program_id(1) * B + samples, top_b, mask=samples < B)
    tl.store(sum_out + tl.program_id(1) * B + samples, sum_b, mask=samples < B)


@triton.jit
def _d_scores(  # type: ignore[no-untyped-def]
    unit,
    rows,
    ids,
    inverse_norms,
    absent,
    target,
    exponent,
    d_target,
    out,
    B,
    n,
    start,
    bits_per_cosine,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_ABSENT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """d loss / d z over the norm of the row, in the unit of each sample, for one tile."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    dots = _tile(unit, rows, samples, columns, ids, B, n, start, D, HAS_IDS, BLOCK_D)
    inverse_n = tl.load(inverse_norms + columns, mask=columns < n, other=0)
    exponent_b = tl.load(exponent + samples, mask=samples < B, other=float("-inf"))
    # No column that counts comes near the bound; others may be beyond what float32 holds.
    d = tl.exp2(
        tl.minimum(dots * (inverse_n * bits_per_cosine)[None, :] + exponent_b[:, None], 30.0)
    )
    if HAS_ABSENT:
        d = tl.where((tl.load(absent + columns, mask=columns < n, other=1) == 0)[None, :], d, 0.0)
    target_b = tl.load(target + samples, mask=samples < B, other=-1)
    d_target_b = tl.load(d_target + samples, mask=samples < B, other=0)
    d = tl.where(columns[None, :] == target_b[:, None], d_target_b[:, None], d) * inverse_n[None, :]
    places = samples.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(
        out + places,
        d.to(out.dtype.element_ty),
        mask=(samples < B)[:, None] & (columns < n)[None, :],
    )


@triton.jit
def _take_row(  # type: ignore[no-untyped-def]
    rows,
    gradient,
    ids,
    inverse_norms,
    start,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """This program's row: its number, its dimensions, itself and its gradient in float32, and 1 /
    |row|."""
    turn = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + turn) if HAS_IDS else turn + start
    dims = tl.arange(0, BLOCK_D)
    w = tl.load(rows + row * D + dims, mask=dims < D, other=0).to(tl.float32)
    g = tl.load(gradient + turn * D + dims, mask=dims < D, other=0)
    return row, dims, w, g, tl.load(inverse_norms + turn)


@triton.jit
def _put_row(  # type: ignore[no-untyped-def]
    rows,
    noise,
    numbers,
    w,
    row,
    lo,
    dims,
    D: tl.constexpr,
    HAS_NUMBERS: tl.constexpr,
    NOISE_ROWS: tl.constexpr,
    DROPPED: tl.constexpr,
):
    """Store a row, rounded by the same dice as `Rows._round_`; returns it as stored."""
    if DROPPED > 0:
        number = (tl.load(numbers + row) if HAS_NUMBERS else row) + lo
        dice = tl.load(noise + (number % NOISE_ROWS) * D + dims, mask=dims < D, other=0)
        bits = (w.to(tl.int32, bitcast=True) + dice) & (-1 << DROPPED)
        w = bits.to(tl.float32, bitcast=True)
    tl.store(rows + row * D + dims, w.to(rows.dtype.element_ty), mask=dims < D)
    return w


@triton.jit
def _update_sgd(  # type: ignore[no-untyped-def]
    rows,
    momenta,
    gradient,
    ids,
    inverse_norms,
    noise,
    numbers,
    is_open,
    lr,
    momentum,
    weight_decay,
    start,
    lo,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_NUMBERS: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    NOISE_ROWS: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`SGDRows.update_` of one row."""
    if tl.load(is_open) != 0:
        row, dims, w, g, inverse = _take_row(
            rows, gradient, ids, inverse_norms, start, D, HAS_IDS, BLOCK_D
        )
        g = g + w * (weight_decay - tl.sum(g * w, 0) * inverse * inverse)
        if HAS_MOMENTUM:
            g += momentum * tl.load(momenta + row * D + dims, mask=dims < D, other=0)
            tl.store(momenta + row * D + dims, g, mask=dims < D)
        _put_row(
            rows,
            noise,
            numbers,
            w - tl.load(lr) * g,
            row,
            lo,
            dims,
            D,
            HAS_NUMBERS,
            NOISE_ROWS,
            DROPPED,
        )


@triton.jit
def _update_rowwise(  # type: ignore[no-untyped-def]
    rows,
    lengths,
    stored_inverse,
    gradient,
    ids,
    inverse_norms,
    noise,
    numbers,
    is_open,
    lr,
    momentum,
    weight_decay,
    start,
    lo,
    D: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_NUMBERS: tl.constexpr,
    NOISE_ROWS: tl.constexpr,
    DROPPED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`RowwiseRows.update_` of one row."""
    if tl.load(is_open) != 0:
        row, dims, w, g, inverse = _take_row(
            rows, gradient, ids, inverse_norms, start, D, HAS_IDS, BLOCK_D
        )
        length, rate = tl.load(lengths + row), tl.load(lr) / (1 - momentum)
        dot, scaled = tl.sum(g * w, 0), tl.maximum(inverse * length, 1e-15)
        slope = tl.sqrt(tl.maximum(tl.sum(g * g, 0) - dot * inverse * dot * inverse, 0.0)) / scaled
        decayed = length * (1 - rate * weight_decay)
        longer = tl.sqrt(decayed * decayed + rate * slope * rate * slope)
        per_length = 1 / tl.maximum(longer, 1e-15)
        step = rate * per_length / scaled
        w = w * (decayed * per_length * inverse + step * dot * inverse * inverse) - step * g
        w = _put_row(rows, noise, numbers, w, row, lo, dims, D, HAS_NUMBERS, NOISE_ROWS, DROPPED)
        norm = tl.sqrt(tl.sum(w * w, 0))
        tl.store(lengths + row, longer)
        tl.store(stored_inverse + row, tl.where(norm > 1e-12, 1 / tl.maximum(norm, 1e-12), 0.0))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, of 16-bit numbers; the CPU, which only tests come to, has no such
    product."""
    return (
        torch.mm(left, right, out_dtype=torch.float32)
        if left.is_cuda
        else left.float() @ right.float()
    )


class _Call:
    """A chunk's arguments as the kernels take them."""

    def __init__(self, rows: Rows, chunk: Chunk, targets_B: Tensor, scale: float) -> None:
        has_ids = isinstance(chunk.ids, Tensor)
        self.rows = chunk.ids
        nothing = targets_B  # a pointer to something, where there is nothing to point to
        self.ids = chunk.ids if isinstance(chunk.ids, Tensor) else nothing
        self.start = 0 if isinstance(chunk.ids, Tensor) else chunk.ids.start
        self.absent = nothing if chunk.absent_n is None else chunk.absent_n.view(torch.int8)
        self.target_B = targets_B - chunk.first
        self.n, self.D, self.bits_per_cosine = len(chunk), rows.rows_CD.shape[1], scale * _LOG2_E
        self.tile: dict[str, Any] = {
            "D": self.D,
            "HAS_IDS": has_ids,
            "HAS_ABSENT": chunk.absent_n is not None,
            "BLOCK_B": BLOCK_B,
            "BLOCK_N": BLOCK_N,
            "BLOCK_D": BLOCK_BYTES // rows.rows_CD.element_size(),
            "num_warps": 8,
        }


def sum_negatives(
    planes: Sequence[Rows], unit_BD: Tensor, columns: Columns, scoring: Scoring, *, store: bool
) -> Negatives:
    """Walk 1, as `softmax.sum_negatives`."""
    assert not store, "to store would save less here than it costs"
    (rows,), scale = planes, scoring.scale
    B, unit_BD = len(unit_BD), unit_BD.to(rows.dtype).contiguous()
    sum_B = torch.zeros(B, dtype=torch.float64, device=unit_BD.device)
    kept = []
    for chunk in columns.chunks:
        call = _Call(rows, chunk, columns.targets_B, scale)
        inverse_n = rows.inverse_norms(chunk.ids)
        tiles_B = triton.cdiv(B, BLOCK_B)
        shares = max(1, min(triton.cdiv(call.n, BLOCK_N), _PROGRAMS // tiles_B))
        top_SB, sums_SB = (torch.empty(shares, B, device=unit_BD.device) for _ in range(2))
        _sum_exponentials[tiles_B, shares](
            unit_BD, rows.rows_CD, call.ids, inverse_n, call.absent, call.target_B, top_SB, sums_SB,
            B, call.n, call.start, call.bits_per_cosine, **call.tile,
        )  # fmt: skip
        sum_B += (sums_SB.double() * top_SB.double().exp2()).sum(0)
        kept.append(Kept(inverse_n[None]))
    return Negatives(sum_B, None, kept)


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
    """Walk 2, as `softmax.descend`."""
    (rows,), scale = planes, scoring.scale
    B, live_B1 = len(unit_BD), outcome.live_B[:, None]
    unit_BD = torch.where(live_B1, unit_BD, 0)
    typed_BD, d_unit_BD = unit_BD.to(rows.dtype).contiguous(), torch.zeros_like(unit_BD)
    exponent_B, factor_B = softmax.exponents(outcome, scoring)
    d_target_B = torch.where(outcome.live_B, outcome.d_target_B / factor_B, 0).float()
    factor_B1 = factor_B.float()[:, None]
    weighted_BD = (unit_BD * factor_B1).bfloat16()
    for chunk, parts in zip(columns.chunks, kept, strict=True):
        call = _Call(rows, chunk, columns.targets_B, scale)
        d_scores_Bn = unit_BD.new_empty(B, call.n, dtype=torch.bfloat16)
        _d_scores[triton.cdiv(B, BLOCK_B), triton.cdiv(call.n, BLOCK_N)](
            typed_BD,
            rows.rows_CD,
            call.ids,
            parts.inverse_Kn[0],
            call.absent,
            call.target_B,
            exponent_B,
            d_target_B,
            d_scores_Bn,
            B,
            call.n,
            call.start,
            call.bits_per_cosine,
            **call.tile,
        )
        d_unit_BD.addcmul_(_product(d_scores_Bn, rows.take(chunk.ids).bfloat16()), factor_B1)
        _update_(rows, call, parts.inverse_Kn[0], _product(d_scores_Bn.T, weighted_BD), gate)
    return d_unit_BD


def _update_(rows: Rows, call: _Call, inverse_n: Tensor, gradient_nD: Tensor, gate: Gate) -> None:
    dropped, noise = rows.dice(gate.position)
    is_open, momentum = gate.open.view(torch.int8), rows.config.momentum
    common: dict[str, Any] = {
        "D": call.D,
        "HAS_IDS": call.tile["HAS_IDS"],
        "HAS_NUMBERS": rows.numbers_C is not None,
        "NOISE_ROWS": len(noise),
        "DROPPED": dropped,
        "BLOCK_D": triton.next_power_of_2(call.D),
    }
    numbers = noise if rows.numbers_C is None else rows.numbers_C
    last = (
        gradient_nD,
        call.ids,
        inverse_n,
        noise,
        numbers,
        is_open,
        gate.lr,
        momentum,
        gate.weight_decay,
        call.start,
        rows.lo,
    )
    if isinstance(rows, SGDRows):
        momenta = rows.rows_CD if rows.momentum_CD is None else rows.momentum_CD
        _update_sgd[call.n,](
            rows.rows_CD, momenta, *last, HAS_MOMENTUM=rows.momentum_CD is not None, **common
        )
    elif isinstance(rows, RowwiseRows):
        _update_rowwise[call.n,](
            rows.rows_CD, rows.lengths_C, rows.inverse_norms_C, *last, **common
        )
    else:  # torch's operations
        rows.update_(call.rows, rows.take(call.rows), inverse_n, gradient_nD, gate)
