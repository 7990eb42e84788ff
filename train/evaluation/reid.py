"""Person re-identification: CMC, mean average precision and mINP of ranked galleries.

For each query, gallery images of its identity from its own camera are left out: finding them is no
merit. Shapes: Q queries, N gallery images, R ranks.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Who is in some images, and which camera saw it, as numbers."""

    identity_N: Ints
    camera_N: Ints

    def __getitem__(self, part: Any) -> "Labels":
        return Labels(self.identity_N[part], self.camera_N[part])


@dataclass(frozen=True)
class Figures:
    """The outcome over all queries that have a match; NaN without one."""

    cmc_R: NDArray[np.float64]
    """The share of queries whose first match stands at each rank or before."""
    map_at_hits: float
    """Mean average precision; the average precision is the mean of the precisions at each match, as
    torchreid, fast-reid and the strong baseline have it."""
    map_trapezoid: float
    """The same with the area under the precision-recall line by trapezoids, as the evaluation of
    Market-1501 (Zheng et al., 2015) has it; the line begins at the precision before the first
    match, which is 1 where the first image of all matches."""
    minp: float
    """Mean inverse negative penalty (Ye et al., 2021): matches over the rank of the last one."""
    queries: int
    without_match: int
    """Queries of which no match is left in the gallery; they count for nothing."""


@dataclass
class Ranking:
    """Collects the ranks of all matches, some queries at a time."""

    gallery: Labels
    max_rank: int = 50
    _first: list[int] = field(default_factory=list)
    _at_hits: list[float] = field(default_factory=list)
    _trapezoid: list[float] = field(default_factory=list)
    _inverse_penalty: list[float] = field(default_factory=list)
    _without: int = 0

    def add(self, scores_QN: NDArray[np.floating], queries: Labels) -> None:
        """Rank the gallery by the scores, the highest first and equal ones by their row."""
        for row, scores_N in enumerate(scores_QN):
            same_N = self.gallery.identity_N == queries.identity_N[row]
            left_out_N = same_N & (self.gallery.camera_N == queries.camera_N[row])
            positions = _positions(scores_N[~left_out_N], same_N[~left_out_N])
            if not len(positions):
                self._without += 1
                continue
            number = np.arange(1, len(positions) + 1)
            precision = number / (positions + 1)
            before = np.where(positions > 0, (number - 1) / np.maximum(positions, 1), 1.0)
            self._first.append(int(positions[0]))
            self._at_hits.append(float(precision.mean()))
            self._trapezoid.append(float(((before + precision) / 2).mean()))
            self._inverse_penalty.append(len(positions) / (float(positions[-1]) + 1))

    def figures(self) -> Figures:
        """What the queries that were added come to."""
        first_Q = np.array(self._first)
        ranks = np.arange(min(self.max_rank, len(self.gallery.identity_N)))
        return Figures(
            cmc_R=np.array([_mean(first_Q <= rank) for rank in ranks]),
            map_at_hits=_mean(self._at_hits),
            map_trapezoid=_mean(self._trapezoid),
            minp=_mean(self._inverse_penalty),
            queries=len(self._first),
            without_match=self._without,
        )


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _positions(scores_N: NDArray[np.floating], match_N: NDArray[np.bool_]) -> Ints:
    """At which places, from 0 on and ascending, the matches stand when all are sorted."""
    matches = np.flatnonzero(match_N)
    ascending = np.sort(scores_N)
    above = len(scores_N) - np.searchsorted(ascending, scores_N[matches], "right")
    alike = len(scores_N) - np.searchsorted(ascending, scores_N[matches], "left") - above
    for place in np.flatnonzero(alike > 1):  # equal scores stand in the order of their rows
        row = matches[place]
        above[place] += int((scores_N[:row] == scores_N[row]).sum())
    return np.sort(above)
