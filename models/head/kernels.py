"""Triton kernels of the head for CUDA; `triton_passes.py` calls them.

The first pass makes a tile of products, its exponentials and their sums in one go: logits never
reach memory. The second makes the tile again and writes d loss / d z of one chunk in bfloat16, for
two products by cuBLAS; one kernel then updates rows, state and norms. Scores are products of
float16 or bfloat16 as the rows have them, of float32 rows by three TF32 products (one alone cuts
bits off: all cosines come out too small).

Shapes as in `passes.py`; a program's tile is BLOCK_B samples by BLOCK_N columns.
"""

import triton
import triton.language as tl


@triton.jit
def dot_tile(  # type: ignore[no-untyped-def]
    unit, rows, samples, columns, ids, B, n, start, D: tl.constexpr, HAS_IDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
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
def sum_exponentials(  # type: ignore[no-untyped-def]
    unit, rows, ids, inverse_norms, excluded, target, top_out, sum_out, B, n, start,
    bits_per_cosine, D: tl.constexpr, HAS_IDS: tl.constexpr, HAS_EXCLUDED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store the largest exponent off the target (at least that of the cosine -1) and the sum of
    2^(exponent - largest), for this program's samples and its share of the column tiles."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    target_b = tl.load(target + samples, mask=samples < B, other=-1)
    top_b = tl.full((BLOCK_B,), -bits_per_cosine, tl.float32)
    sum_b = tl.zeros((BLOCK_B,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(n, BLOCK_N), tl.num_programs(1)):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        dots = dot_tile(unit, rows, samples, columns, ids, B, n, start, D, HAS_IDS, BLOCK_D)
        inverse_n = tl.load(inverse_norms + columns, mask=columns < n, other=0)
        exponents = dots * (inverse_n * bits_per_cosine)[None, :]
        counts = (columns < n)[None, :] & (columns[None, :] != target_b[:, None])
        if HAS_EXCLUDED:
            counts &= (tl.load(excluded + columns, mask=columns < n, other=1) == 0)[None, :]
        exponents = tl.where(counts, exponents, float("-inf"))
        higher_b = tl.maximum(top_b, tl.max(exponents, 1))
        sum_b = sum_b * tl.exp2(top_b - higher_b) + tl.sum(
            tl.exp2(exponents - higher_b[:, None]), 1
        )
        top_b = higher_b
    tl.store(top_out + tl.program_id(1) * B + samples, top_b, mask=samples < B)
    tl.store(sum_out + tl.program_id(1) * B + samples, sum_b, mask=samples < B)


@triton.jit
def score_gradients(  # type: ignore[no-untyped-def]
    unit, rows, ids, inverse_norms, excluded, target, exponent, d_target, out, B, n, start,
    bits_per_cosine, D: tl.constexpr, HAS_IDS: tl.constexpr, HAS_EXCLUDED: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store d loss / d z over the norm of the row, in the unit of each sample, for one tile."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    dots = dot_tile(unit, rows, samples, columns, ids, B, n, start, D, HAS_IDS, BLOCK_D)
    inverse_n = tl.load(inverse_norms + columns, mask=columns < n, other=0)
    exponent_b = tl.load(exponent + samples, mask=samples < B, other=float("-inf"))
    # No column that counts comes near the bound; others may be beyond what float32 holds.
    d = tl.exp2(
        tl.minimum(dots * (inverse_n * bits_per_cosine)[None, :] + exponent_b[:, None], 30.0)
    )
    if HAS_EXCLUDED:
        d = tl.where((tl.load(excluded + columns, mask=columns < n, other=1) == 0)[None, :], d, 0.0)
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
def take_row(  # type: ignore[no-untyped-def]
    rows, gradient, ids, inverse_norms, start, D: tl.constexpr, HAS_IDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load this program's row: its local id, its dimensions, its values and its gradient in
    float32, and 1 / |row|."""
    turn = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + turn) if HAS_IDS else turn + start
    dims = tl.arange(0, BLOCK_D)
    w = tl.load(rows + row * D + dims, mask=dims < D, other=0).to(tl.float32)
    g = tl.load(gradient + turn * D + dims, mask=dims < D, other=0)
    return row, dims, w, g, tl.load(inverse_norms + turn)


@triton.jit
def put_row(  # type: ignore[no-untyped-def]
    rows, noise, local_ids, w, row, lo, dims, D: tl.constexpr, HAS_LOCAL_IDS: tl.constexpr,
    NOISE_ROWS: tl.constexpr, DROPPED: tl.constexpr,
):  # fmt: skip
    """Store a row, rounded by the same noise as in `Rows._round_`; returns it as stored."""
    if DROPPED > 0:
        class_id = (tl.load(local_ids + row) if HAS_LOCAL_IDS else row) + lo
        bits = tl.load(noise + (class_id % NOISE_ROWS) * D + dims, mask=dims < D, other=0)
        bits = (w.to(tl.int32, bitcast=True) + bits) & (-1 << DROPPED)
        w = bits.to(tl.float32, bitcast=True)
    tl.store(rows + row * D + dims, w.to(rows.dtype.element_ty), mask=dims < D)
    return w


@triton.jit
def update_sgd(  # type: ignore[no-untyped-def]
    rows, momenta, gradient, ids, inverse_norms, noise, local_ids, applied, lr, momentum,
    weight_decay, start, lo, D: tl.constexpr, HAS_IDS: tl.constexpr, HAS_LOCAL_IDS: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr, NOISE_ROWS: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Update one row as `SGDRows.update_` does."""
    if tl.load(applied) != 0:
        row, dims, w, g, inverse = take_row(
            rows, gradient, ids, inverse_norms, start, D, HAS_IDS, BLOCK_D
        )
        g = g + w * (weight_decay - tl.sum(g * w, 0) * inverse * inverse)
        if HAS_MOMENTUM:
            g += momentum * tl.load(momenta + row * D + dims, mask=dims < D, other=0)
            tl.store(momenta + row * D + dims, g, mask=dims < D)
        w = w - tl.load(lr) * g
        put_row(rows, noise, local_ids, w, row, lo, dims, D, HAS_LOCAL_IDS, NOISE_ROWS, DROPPED)


@triton.jit
def update_rowwise(  # type: ignore[no-untyped-def]
    rows, lengths, stored_inverse, gradient, ids, inverse_norms, noise, local_ids, applied, lr,
    momentum, weight_decay, start, lo, D: tl.constexpr, HAS_IDS: tl.constexpr,
    HAS_LOCAL_IDS: tl.constexpr, NOISE_ROWS: tl.constexpr, DROPPED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Update one row as `RowwiseRows.update_` does."""
    if tl.load(applied) != 0:
        row, dims, w, g, inverse = take_row(
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
        w = put_row(rows, noise, local_ids, w, row, lo, dims, D, HAS_LOCAL_IDS, NOISE_ROWS, DROPPED)
        norm = tl.sqrt(tl.sum(w * w, 0))
        tl.store(lengths + row, longer)
        tl.store(stored_inverse + row, tl.where(norm > 1e-12, 1 / tl.maximum(norm, 1e-12), 0.0))
