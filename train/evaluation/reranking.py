"""Re-ranking by k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with
k-reciprocal Encoding", CVPR 2017).

Two images that are among each other's nearest are more alike than their distance says: the distance
that is added is that of the sets of such neighbours. The published code holds all distances of
queries and gallery to each other; here each image has its few neighbours only.

Shapes: Q queries, N gallery images, M = Q + N, D the embedding, k1 and k2 as in the paper.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation.nearest import Floats, blocks, exact_search

Ints = NDArray[np.int64]
_QUERY_ROWS = 256


class Neighbours(NamedTuple):
    """What re-ranking knows of each image."""

    nearest_MK: Ints
    """The images nearest to it, itself among them, nearest first."""
    farthest_M: NDArray[np.float64]
    """Squared distance of the image that is farthest from it, by which its distances are scaled."""


class ReRanked:
    """Distances of queries to the gallery, re-ranked.

    `k1` nearest neighbours are looked at, sets are averaged over `k2`, and the original distance
    counts with the weight `original`. Embeddings are of length 1; distances are squared Euclidean,
    and those of each image are scaled by its largest, as published. `advance` is told how many more
    of 2M images are done.
    """

    def __init__(
        self,
        query_unit_QD: Floats,
        gallery_unit_ND: Floats,
        k1: int = 20,
        k2: int = 6,
        original: float = 0.3,
        advance: Callable[[int], None] = lambda images: None,
    ) -> None:
        from scipy import sparse

        self._unit_QD, self._unit_ND, self._original = query_unit_QD, gallery_unit_ND, original
        unit_MD = np.concatenate([query_unit_QD, gallery_unit_ND])
        neighbours = _neighbours(unit_MD, k1, advance)
        self._farthest_Q = neighbours.farthest_M[: len(query_unit_QD)]
        near = neighbours.nearest_MK
        reciprocal = [_reciprocal(near, image, k1) for image in range(len(near))]
        half = [_reciprocal(near, image, int(np.around(k1 / 2))) for image in range(len(near))]
        rows, columns, weights = [], [], []
        for image in range(len(near)):
            members = _expanded(image, reciprocal[image], half)
            cosines = unit_MD[members].astype(np.float64) @ unit_MD[image].astype(np.float64)
            weight = np.exp(-_scaled(cosines, neighbours.farthest_M[image]))
            rows.append(np.full(len(members), image))
            columns.append(members)
            weights.append(weight / weight.sum())
            advance(1)
        parts = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
        membership = sparse.csr_array(parts, shape=(len(near), len(near)))
        chosen = near[:, :k2]
        averaging = sparse.csr_array(
            (
                np.full(chosen.size, 1 / chosen.shape[1]),
                (np.repeat(np.arange(len(near)), chosen.shape[1]), chosen.ravel()),
            ),
            shape=membership.shape,
        )
        self._members: Any = (averaging @ membership).tocsr()
        self._holders: Any = self._members[len(query_unit_QD) :].tocsc()

    def distances(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Some queries and their distances to the whole gallery, float64 [queries, N]."""
        for start in range(0, len(self._unit_QD), _QUERY_ROWS):
            part = slice(start, min(start + _QUERY_ROWS, len(self._unit_QD)))
            unit_QD = self._unit_QD[part].astype(np.float64)
            cosines_QN = unit_QD @ self._unit_ND.T.astype(np.float64)
            plain_QN = _scaled(cosines_QN, self._farthest_Q[part, None])
            jaccard_QN = np.stack([self._jaccard(row) for row in range(start, part.stop)])
            yield part, jaccard_QN * (1 - self._original) + plain_QN * self._original

    def _jaccard(self, query: int) -> NDArray[np.float64]:
        """The Jaccard distances of a query's set of neighbours to those of the gallery. As all
        memberships of a set sum to 1, the union of two is 2 minus what they share."""
        shared_N = np.zeros(len(self._unit_ND))
        own, holders = self._members, self._holders
        for at in range(own.indptr[query], own.indptr[query + 1]):
            column, weight = own.indices[at], own.data[at]
            held = slice(holders.indptr[column], holders.indptr[column + 1])
            shared_N[holders.indices[held]] += np.minimum(weight, holders.data[held])
        return 1 - shared_N / (2 - shared_N)


def _neighbours(unit_MD: Floats, k1: int, advance: Callable[[int], None]) -> Neighbours:
    found = exact_search(unit_MD, blocks(unit_MD), k1 + 1, advance)
    lowest_M = np.full(len(unit_MD), np.inf)
    for block_ND in blocks(unit_MD):
        for start in range(0, len(unit_MD), _QUERY_ROWS):
            part = slice(start, start + _QUERY_ROWS)
            lowest_M[part] = np.minimum(lowest_M[part], (unit_MD[part] @ block_ND.T).min(1))
    # All images may be one and the same.
    farthest_M = np.maximum(2 - 2 * lowest_M, np.finfo(np.float32).eps)
    return Neighbours(found.rows_QK, farthest_M)


def _scaled(cosines: NDArray[np.float64], farthest: Any) -> NDArray[np.float64]:
    return np.maximum(2 - 2 * cosines, 0) / farthest  # type: ignore[no-any-return]


def _reciprocal(near_MK: Ints, image: int, k: int) -> Ints:
    """Of the k nearest images, those that have this one among their k nearest."""
    forward = near_MK[image, : k + 1]
    has_this = np.any(near_MK[forward, : k + 1] == image, axis=1)
    return np.asarray(forward[has_this], np.int64)


def _expanded(image: int, own: Ints, half: list[Ints]) -> Ints:
    """A set of k-reciprocal neighbours, with the sets of half the size of those of its members of
    which it has more than two thirds already."""
    # Of many images that are one and the same, some are not even among their own k nearest.
    members = [own if len(own) else np.array([image])]
    for member in own:
        others = half[member]
        if np.isin(others, own).sum() > 2 / 3 * len(others):
            members.append(others)
    return np.unique(np.concatenate(members))
