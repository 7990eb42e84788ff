"""95 % intervals of the figures of scored pairs by the bootstrap: pairs, or where their identities
are known identities, are drawn again with replacement.

Pairs of one person are alike, so that intervals over pairs are too narrow where the pairs of few
people are many. Drawing identities, a genuine pair counts as often as its person is drawn, and an
impostor pair as often as both of its people are drawn together.

Shapes: N pairs, B replicates, K cells: pairs of equal score, or of neighbouring scores where pairs
are very many.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation.operating_points import allowed_accepts

Floats = NDArray[np.float64]
Interval = tuple[float, float]

REPLICATES, SEED = 1000, 20240229
LEVEL = 0.95
_MOST_CELLS = 20_000
_SINGLE = 2000
"""Impostor pairs with the highest scores, which have cells of their own even where pairs are many:
they decide on TAR at a low FAR."""
_MOST_DRAWN = 200_000
_AT_A_TIME = 250_000
"""Weights of pairs or cells that are held at a time, so that they stay in the processor's cache."""
_ROUNDING = 1e-9

GRID = np.geomspace(1e-6, 1, 121)
"""FARs at which the band of a ROC is known."""


class RocIntervals(NamedTuple):
    """What the bootstrap says of a set of scored pairs."""

    auc: Interval | None
    eer: Interval | None
    tar: dict[float, Interval]
    """By FAR, of those that the set can tell."""
    band: tuple[Floats, Floats] | None
    """The lower and the upper TAR at each FAR of `GRID`."""


def roc_intervals(
    scores_N: NDArray[np.floating],
    same_N: NDArray[np.bool_],
    fars: Sequence[float],
    identities_N2: NDArray[np.integer] | None = None,
    replicates: int = REPLICATES,
) -> RocIntervals:
    """Intervals of AUC, EER and of TAR at each FAR, which is not exceeded, and a band around the
    ROC. Without identities pairs are drawn, genuine and impostor pairs each among themselves.
    Nothing is known where one kind of pair is missing."""
    impostors = int((~same_N).sum())
    if not same_N.any() or not impostors:
        return RocIntervals(None, None, {}, None)
    cell_N = _cells(scores_N, same_N)
    known = [far for far in fars if allowed_accepts(far, impostors)]
    figures: dict[str, list[Floats]] = {"auc": [], "eer": [], "tar": [], "band": []}
    for true_BK, false_BK in _weights(cell_N, same_N, identities_N2, replicates):
        tar_BK, far_BK = _cumulative(true_BK), _cumulative(false_BK)
        figures["auc"].append(_auc(tar_BK, far_BK))
        figures["eer"].append(_eer(tar_BK, far_BK))
        figures["tar"].append(_tar(tar_BK, far_BK, np.array(known)))
        figures["band"].append(_tar(tar_BK, far_BK, GRID))
    auc_B, eer_B, tar_BF, band_BG = (np.concatenate(parts) for parts in figures.values())
    if not len(auc_B):
        return RocIntervals(None, None, {}, None)
    return RocIntervals(
        interval(auc_B),
        interval(eer_B),
        {far: interval(tar_BF[:, place]) for place, far in enumerate(known)},
        _ends(band_BG),
    )


def mean_interval(
    values_N: NDArray[np.floating] | NDArray[np.bool_],
    identities_N2: NDArray[np.integer] | None = None,
    replicates: int = REPLICATES,
) -> Interval:
    """The interval of the mean of what each pair gives, such as whether it is told rightly."""
    values, known = np.asarray(values_N, np.float64), []
    for weights_BN in pair_weights(len(values), identities_N2, replicates):
        total_B = weights_BN.sum(1)
        known.append((weights_BN @ values)[total_B > 0] / total_B[total_B > 0])
    return interval(np.concatenate(known))


def interval(values_B: Floats) -> Interval:
    """The range that holds 95 % of the replicates, as many being below it as above it."""
    low, high = _ends(values_B[:, None])
    return float(low[0]), float(high[0])


def _ends(values_BX: Floats) -> tuple[Floats, Floats]:
    low, high = np.quantile(values_BX, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def pair_weights(
    pairs: int,
    identities_N2: NDArray[np.integer] | None = None,
    replicates: int = REPLICATES,
) -> Iterator[NDArray[np.int32]]:
    """How often each pair is drawn in each replicate, some replicates at a time, [B, N]. The same
    arguments give the same weights."""
    rng = np.random.default_rng(SEED)
    draw: Callable[[int], NDArray[np.int32]]
    if identities_N2 is None:

        def draw(number: int) -> NDArray[np.int32]:
            return _drawn(rng, pairs, number)

    else:
        names, place_N2 = np.unique(identities_N2, return_inverse=True)
        first_N, second_N = place_N2.reshape(-1, 2).T

        def draw(number: int) -> NDArray[np.int32]:
            times_BI = _drawn(rng, len(names), number)
            both_BN = times_BI[:, first_N] * times_BI[:, second_N]
            return np.where(first_N == second_N, times_BI[:, first_N], both_BN)

    at_a_time = max(1, _AT_A_TIME // pairs)
    for start in range(0, replicates, at_a_time):
        yield draw(min(at_a_time, replicates - start))


def _drawn(rng: np.random.Generator, things: int, replicates: int) -> NDArray[np.int32]:
    """How often each of the things is drawn with replacement, as often as there are things."""
    return np.stack(
        [
            np.bincount(rng.integers(things, size=things), minlength=things).astype(np.int32)
            for _ in range(replicates)
        ]
    )


def _cells(scores_N: NDArray[np.floating], same_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The cell of each pair, from the highest score down: its distinct score, or where pairs are
    very many a range of scores, which are narrow where they are high."""
    cell_N: NDArray[np.int64]
    if len(scores_N) <= _MOST_CELLS:
        cell_N = np.unique(-scores_N, return_inverse=True)[1].reshape(-1)
        return cell_N
    impostors = np.sort(scores_N[~same_N])[::-1]
    ranks = np.geomspace(_SINGLE, max(len(impostors) - 1, _SINGLE), _SINGLE).astype(np.int64)
    ranks = np.concatenate([np.arange(_SINGLE), ranks]).clip(max=len(impostors) - 1)
    edges = np.unique(np.concatenate([impostors[ranks], np.quantile(scores_N[same_N], _SHARES)]))
    # A pair lies in the cell of the highest edge that is at or below its score.
    cell_N = len(edges) - np.searchsorted(edges, scores_N, side="right")
    return cell_N


_SHARES = np.linspace(0, 1, _SINGLE)


def _weights(
    cell_N: NDArray[np.int64],
    same_N: NDArray[np.bool_],
    identities_N2: NDArray[np.integer] | None,
    replicates: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """How many genuine and impostor pairs each cell has in each replicate, some replicates at a
    time, [B, K] each. Replicates without one kind of pair are left out."""
    num_cells = int(cell_N.max()) + 1
    if identities_N2 is not None:
        for weights_BN in pair_weights(len(cell_N), identities_N2, replicates):
            both = [_summed(weights_BN[:, k], cell_N[k], num_cells) for k in (same_N, ~same_N)]
            usable = (both[0].sum(1) > 0) & (both[1].sum(1) > 0)
            yield both[0][usable], both[1][usable]
        return
    rng = np.random.default_rng(SEED)
    draw_genuine, draw_impostors = (
        _redrawing(rng, cell_N[kind], num_cells) for kind in (same_N, ~same_N)
    )
    at_a_time = max(1, _AT_A_TIME // num_cells)
    for start in range(0, replicates, at_a_time):
        number = min(at_a_time, replicates - start)
        yield draw_genuine(number), draw_impostors(number)


def _redrawing(
    rng: np.random.Generator, cell_n: NDArray[np.int64], num_cells: int
) -> Callable[[int], NDArray[np.int64]]:
    """Gives for a number of replicates how many of n pairs, drawn with replacement, lie in each
    cell, [B, K]."""
    share_K = np.bincount(cell_n, minlength=num_cells) / len(cell_n)

    def draw(replicates: int) -> NDArray[np.int64]:
        if len(cell_n) > _MOST_DRAWN:
            return np.asarray(rng.multinomial(len(cell_n), share_K, size=replicates))
        drawn = (cell_n[rng.integers(len(cell_n), size=len(cell_n))] for _ in range(replicates))
        return np.stack([np.bincount(each, minlength=num_cells) for each in drawn])

    return draw


def _summed(
    weights_BN: NDArray[np.int32], cell_N: NDArray[np.int64], num_cells: int
) -> NDArray[np.int64]:
    summed = [np.bincount(cell_N, weights=row, minlength=num_cells) for row in weights_BN]
    return np.stack(summed).astype(np.int64)


def _cumulative(counts_BK: NDArray[np.int64]) -> Floats:
    """The share of the pairs in each cell and those of higher scores, with 0 in front."""
    sums_BK = np.cumsum(counts_BK, 1)
    return np.pad(sums_BK / sums_BK[:, -1:], ((0, 0), (1, 0)))


def _auc(tar_BK: Floats, far_BK: Floats) -> Floats:
    return np.asarray(np.trapezoid(tar_BK, far_BK, axis=1))


def _eer(tar_BK: Floats, far_BK: Floats) -> Floats:
    """As `Roc.eer`, of each replicate."""
    rows, sums_BK = np.arange(len(tar_BK)), tar_BK + far_BK
    after_B = np.array([np.searchsorted(row, 1.0) for row in sums_BK])
    before_B = (after_B - 1).clip(0)
    low_B, high_B = sums_BK[rows, before_B], sums_BK[rows, after_B]
    share_B = (1 - low_B) / (high_B - low_B).clip(1e-12)
    far_low_B, far_high_B = far_BK[rows, before_B], far_BK[rows, after_B]
    return np.asarray(far_low_B + share_B * (far_high_B - far_low_B))


def _tar(tar_BK: Floats, far_BK: Floats, fars_F: Floats) -> Floats:
    """The highest TAR at which each FAR is not exceeded, [B, F]."""
    places = [np.searchsorted(row, fars_F + _ROUNDING, side="right") - 1 for row in far_BK]
    return np.take_along_axis(tar_BK, np.stack(places), 1)


def band_at(band: tuple[Floats, Floats] | None, far_K: Floats) -> tuple[Floats | None, ...]:
    """The lower and the upper end of the band of a ROC at these FARs; None where there is none."""
    if band is None:
        return None, None
    log_far_K = np.log(far_K.clip(GRID[0], 1))
    return tuple(np.interp(log_far_K, np.log(GRID), each) for each in band)
