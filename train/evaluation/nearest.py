"""The nearest rows of a gallery to each query, by cosine: exact, and approximate by inverted lists.

Both take unit embeddings (`unit` makes them) as float32, the gallery block by block, so that it
never has to be in memory as a whole, and give scores and gallery rows best first. Equal scores
stand in the order of their gallery rows: results do not depend on threads or on block sizes.

Shapes: Q queries, N gallery rows, D the embedding, K neighbours.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

_BLOCK_NUMBERS = 1 << 25
"""Numbers of a block: 65,536 rows of 512."""
_QUERY_ROWS, _DOUBTFUL_ROWS = 1 << 10, 1 << 7
_PAIRS = 1 << 14
"""Queries, or pairs of a query and a row, that are compared at a time."""
_ROUNDING = 1e-5
"""Far above what single precision makes of a product of unit vectors: scores that differ by less
are compared in double precision."""
_SPARE = 8
"""Candidates beyond the K best that are looked at, so that the last of the K is seldom doubtful."""

Floats = NDArray[np.float32]


class Nearest(NamedTuple):
    """The nearest gallery rows of each query, best first; K is no more than the gallery has."""

    scores_QK: Floats
    """Cosines; -inf where a search by inverted lists finds fewer than K."""
    rows_QK: NDArray[np.int64]
    """Rows of the gallery, counted over its blocks; -1 where there is none."""


def unit(embeddings_ND: NDArray[np.floating[Any]]) -> Floats:
    """Rows of length 1, float32; a row of zeros stays one."""
    embeddings_ND = np.asarray(embeddings_ND, np.float32)
    norms_N1 = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    return np.ascontiguousarray(embeddings_ND / np.maximum(norms_N1, 1e-12), np.float32)


def blocks(gallery_ND: Floats) -> Iterator[Floats]:
    """A gallery in memory, or mapped into it, as blocks that a search takes; a larger one gains
    nothing."""
    rows = max(1, _BLOCK_NUMBERS // max(1, gallery_ND.shape[1]))
    for start in range(0, len(gallery_ND), rows):
        yield gallery_ND[start : start + rows]


def exact_search(
    queries_QD: Floats,
    gallery: Iterable[Floats],
    k: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Nearest:
    """The K nearest of all rows of the gallery, which is passed over once.

    Memory is bounded by queries, results and one block. `advance` is told how many more gallery
    rows are done. Scores are sums in double precision, rounded to float32. It uses faiss where that
    is installed, and blocked matrix products where not, which is told once. Raises `UserError` for
    widths that differ and for numbers that are not finite.
    """
    _check("the queries", queries_QD, queries_QD.shape[1])
    best = Nearest(
        np.empty((len(queries_QD), 0), np.float32), np.empty((len(queries_QD), 0), np.int64)
    )
    first = 0
    for block_ND in (block_ND for given_ND in gallery for block_ND in blocks(given_ND)):
        _check(f"gallery from row {first} on", block_ND, queries_QD.shape[1])
        block_ND = np.ascontiguousarray(block_ND, np.float32)
        best = _merged(best, first, queries_QD, block_ND, k)
        first += len(block_ND)
        advance(len(block_ND))
    return best


class InvertedLists:
    """Approximate search: the gallery is split into lists around k-means centres, and a query is
    compared with the rows of the few lists whose centres are nearest (IVF).

    A copy of the gallery is held in float32. `train` it with a sample of the gallery, `add` all
    blocks, then `search`. What it misses is to be measured: see `recall`. Raises `UserError` where
    faiss is not installed.
    """

    def __init__(self, dim: int, num_lists: int, seed: int = 0) -> None:
        faiss = _faiss()
        if faiss is None:
            raise UserError(
                "search by inverted lists (IVF) needs faiss; pip install 'manyfaces[search]', or "
                "search exactly"
            )
        self.num_lists = num_lists
        self._index: Any = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT
        )
        clustering = self._index.cp
        clustering.seed, clustering.niter, clustering.spherical = seed + 1, 10, True
        clustering.min_points_per_centroid = 1

    @staticmethod
    def lists_for(num_rows: int) -> int:
        """As many lists as make assigning a row cost what comparing a query with one list does:
        the square root of the rows."""
        return max(1, round(math.sqrt(num_rows)))

    @staticmethod
    def sample_rows(num_rows: int, num_lists: int, seed: int = 0) -> NDArray[np.int64]:
        """Rows of a gallery to train with, ascending: 64 for each list, or all."""
        chosen = min(num_rows, 64 * num_lists)
        random = np.random.default_rng(seed)
        return np.sort(random.choice(num_rows, chosen, replace=False)).astype(np.int64)

    def train(self, sample_ND: Floats) -> None:
        """Place the centres of the lists. Raises `UserError` for fewer rows than lists."""
        if len(sample_ND) < self.num_lists:
            raise UserError(
                f"{self.num_lists} lists cannot be made of {len(sample_ND)} rows; ask for fewer"
            )
        self._index.train(np.ascontiguousarray(sample_ND, np.float32))

    def add(self, block_ND: Floats) -> None:
        """Put the next rows of the gallery into the lists."""
        _check("the gallery", block_ND, self._index.d)
        self._index.add(np.ascontiguousarray(block_ND, np.float32))

    def search(self, queries_QD: Floats, k: int, probes: int) -> Nearest:
        """The K nearest rows among those of `probes` lists; there may be fewer than K."""
        _check("the queries", queries_QD, self._index.d)
        self._index.nprobe = min(probes, self.num_lists)
        k = min(k, self._index.ntotal)
        scores_QK, rows_QK = self._index.search(np.ascontiguousarray(queries_QD, np.float32), k)
        scores_QK[rows_QK < 0] = -np.inf
        order_QK = np.lexsort((rows_QK, -scores_QK), axis=1)
        return Nearest(*(np.take_along_axis(each, order_QK, 1) for each in (scores_QK, rows_QK)))


def recall(found: Nearest, exact: Nearest) -> float:
    """The share of the exact nearest rows that a search has found, over all queries."""
    shared = [len(np.intersect1d(a, b)) for a, b in zip(found.rows_QK, exact.rows_QK, strict=True)]
    return float(np.sum(shared) / exact.rows_QK.size)


@cache
def _faiss() -> Any:
    """The library, or None, which is told once in a process."""
    try:
        import faiss
    except ImportError:
        logging.getLogger(__name__).warning(
            "faiss is not installed: exact search uses plain matrix products, which need more "
            "time; pip install 'manyfaces[search]'"
        )
        return None
    return faiss


def _merged(best: Nearest, first: int, queries_QD: Floats, block_ND: Floats, k: int) -> Nearest:
    """The K best of those of earlier blocks and of this one, whose first row is number `first`."""
    parts = []
    for start in range(0, len(queries_QD), _QUERY_ROWS):
        part = slice(start, start + _QUERY_ROWS)
        earlier_QK = best.scores_QK[part]
        bar_Q = np.full(len(earlier_QK), -np.inf, np.float32)
        if earlier_QK.shape[1] == k:
            bar_Q = earlier_QK[:, -1] - np.float32(_ROUNDING)
        found = _best_of_block(queries_QD[part], block_ND, k, bar_Q)
        scores = np.concatenate([earlier_QK, found.scores_QK], axis=1)
        rows = np.concatenate([best.rows_QK[part], found.rows_QK + first], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        parts.append([np.take_along_axis(each, order, 1) for each in (scores, rows)])
    return Nearest(*(np.concatenate(each) for each in zip(*parts, strict=True))) if parts else best


def _best_of_block(
    queries_QD: Floats, block_ND: Floats, k: int, bar_Q: NDArray[np.float32]
) -> Nearest:
    """The K best rows of a block, and some more, in no order; scores that are surely below the bar
    are -inf."""
    count = min(k + _SPARE, len(block_ND))
    rough_QC, rows_QC = _candidates(queries_QD, block_ND, count)
    doubtful_Q = np.zeros(len(queries_QD), bool)
    if count < len(block_ND):
        worst_Q, last_Q = np.partition(rough_QC, (0, count - k), axis=1)[:, [0, count - k]].T
        doubtful_Q = (last_Q - worst_Q < _ROUNDING) & (worst_Q >= bar_Q)
    scores_QC = np.full_like(rough_QC, -np.inf)
    queries_P, columns_P = np.nonzero((rough_QC >= bar_Q[:, None]) & ~doubtful_Q[:, None])
    for start in range(0, len(queries_P), _PAIRS):
        pairs = queries_P[start : start + _PAIRS], columns_P[start : start + _PAIRS]
        left_PD = queries_QD[pairs[0]].astype(np.float64)
        scores_QC[pairs] = np.einsum("pd,pd->p", left_PD, block_ND[rows_QC[pairs]])
    doubtful = np.flatnonzero(doubtful_Q)
    if len(doubtful):
        double_ND = block_ND.astype(np.float64)
        for start in range(0, len(doubtful), _DOUBTFUL_ROWS):
            part = doubtful[start : start + _DOUBTFUL_ROWS]
            products = queries_QD[part].astype(np.float64) @ double_ND.T
            for query, scores_N in zip(part, products.astype(np.float32), strict=True):
                rows_QC[query] = _first_best(scores_N, count)
                scores_QC[query] = scores_N[rows_QC[query]]
    return Nearest(scores_QC, rows_QC)


def _first_best(scores_N: Floats, count: int) -> NDArray[np.int64]:
    """The `count` best rows, in no order; of those that equal the last one, the first."""
    last = np.partition(scores_N, len(scores_N) - count)[len(scores_N) - count]
    above = np.flatnonzero(scores_N > last)
    return np.concatenate([above, np.flatnonzero(scores_N == last)[: count - len(above)]])


def _candidates(
    queries_QD: Floats, block_ND: Floats, count: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The `count` best rows of a block in single precision, in no order."""
    queries_QD, faiss = np.ascontiguousarray(queries_QD, np.float32), _faiss()
    if faiss is not None:
        return faiss.knn(queries_QD, block_ND, count, metric=faiss.METRIC_INNER_PRODUCT)  # type: ignore[no-any-return]
    scores_QN = queries_QD @ block_ND.T
    rows_QC = np.argpartition(-scores_QN, count - 1, axis=1)[:, :count]
    return np.take_along_axis(scores_QN, rows_QC, 1), rows_QC.astype(np.int64)


def _check(what: str, embeddings_ND: Floats, dim: int) -> None:
    if embeddings_ND.ndim != 2 or embeddings_ND.shape[1] != dim:
        raise UserError(f"{what}: embeddings of shape {embeddings_ND.shape}, not of {dim} numbers")
    if not np.isfinite(embeddings_ND).all():
        raise UserError(f"{what}: embeddings that are not finite")
