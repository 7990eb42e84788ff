"""Cosines of millions of pairs among thousands of vectors.

Shapes: K unit vectors of D numbers, P pairs; R and C the vectors that stand first and second in
some pair.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]

_BLOCK_BYTES = 1 << 25
_PAIRS_AT_A_TIME = 2048
_PRODUCTS_PER_PAIR = 32
"""How many products a matrix product does while one pair of rows is gathered and multiplied."""


def pair_scores(unit_KD: NDArray[Any], first_P: Ints, second_P: Ints) -> NDArray[Any]:
    """The product of both vectors of each pair, [P], of the vectors' dtype.

    Where the pairs are a good part of all combinations of their vectors, as those of IJB are, all
    combinations are computed block by block and the pairs picked out of them: a matrix product
    reads each vector once a block, and not once a pair. Memory beside the scores is about 0.3 GB.
    """
    rows_R, row_P = _used(first_P, len(unit_KD))
    columns_C, column_P = _used(second_P, len(unit_KD))
    scores_P = np.empty(len(first_P), unit_KD.dtype)
    if len(rows_R) * len(columns_C) <= _PRODUCTS_PER_PAIR * len(first_P):
        _by_products(unit_KD[rows_R], unit_KD[columns_C], row_P, column_P, scores_P)
    else:
        for start in range(0, len(first_P), _PAIRS_AT_A_TIME):
            part = slice(start, start + _PAIRS_AT_A_TIME)
            first_PD, second_PD = unit_KD[first_P[part]], unit_KD[second_P[part]]
            np.einsum("nd,nd->n", first_PD, second_PD, out=scores_P[part])
    return scores_P


def _used(index_P: Ints, num_vectors: int) -> tuple[Ints, Ints]:
    """The vectors that are in a pair, and which of them each pair has."""
    is_used = np.zeros(num_vectors, bool)
    is_used[index_P] = True
    place_K = np.cumsum(is_used, dtype=np.int32) - 1
    return np.flatnonzero(is_used), place_K[index_P]


def _by_products(
    left_RD: NDArray[Any],
    right_CD: NDArray[Any],
    row_P: Ints,
    column_P: Ints,
    scores_P: NDArray[Any],
) -> None:
    """Fill in the scores of all pairs."""
    height = max(1, _BLOCK_BYTES // (right_CD.itemsize * len(right_CD)))
    height = max(height, -(-len(left_RD) // np.iinfo(np.uint16).max))
    # A stable sort of 16-bit numbers is one pass by digits, ten times as fast as one of 32 bits.
    order_P = np.argsort((row_P // height).astype(np.uint16), kind="stable")
    edges = np.searchsorted(row_P[order_P] // height, np.arange(-(-len(left_RD) // height) + 1))
    # Fresh memory for each block would cost as much as the product.
    kept_rC = np.empty((min(height, len(left_RD)), len(right_CD)), right_CD.dtype)
    for block, (begin, end) in enumerate(pairwise(edges)):
        low = block * height
        left_rD = left_RD[low : low + height]
        products_rC = np.matmul(left_rD, right_CD.T, out=kept_rC[: len(left_rD)])
        pairs_p = order_P[begin:end]
        scores_P[pairs_p] = products_rC[row_P[pairs_p] - low, column_P[pairs_p]]
