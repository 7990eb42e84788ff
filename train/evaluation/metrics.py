"""Verification by folds, as InsightFace's eval/verification.py has it: thresholds of the squared
distance of unit embeddings, chosen on nine folds and counted on the tenth.

Shapes: N pairs, F folds, T thresholds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)
"""Those that are tried for the accuracy. A pair is taken for one identity where its distance is
strictly below."""
VAL_THRESHOLDS = np.arange(0, 4, 0.001)
VAL_FAR = 1e-3


class Folds(NamedTuple):
    """Figures of each fold, at thresholds that the other folds have chosen."""

    accuracy_F: Floats
    threshold_F: Floats
    """Squared distances: the lowest of the thresholds with which the other folds are best."""
    correct_N: Bools
    """Whether each pair is told rightly at the threshold of its fold."""


class Val(NamedTuple):
    """Validation rate at a FAR, in the mean over the folds that have pairs of the kind."""

    val: float | None
    std: float | None
    far: float | None
    """The share of impostor pairs of the folds that is in fact accepted."""


def unit(embeddings_ND: NDArray[np.floating]) -> Floats:
    """The embeddings in length 1 and double precision; one of length 0 stays."""
    e = embeddings_ND.astype(np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True).clip(1e-12)
    return e


def cosine_scores(embeddings_ND: NDArray[np.floating]) -> Floats:
    """The cosine of embeddings 2i and 2i + 1 for each pair i, [N]."""
    e = unit(embeddings_ND)
    scores: Floats = (e[0::2] * e[1::2]).sum(1)
    return scores


def squared_distances(embeddings_ND: NDArray[np.floating]) -> Floats:
    """The squared distance of unit embeddings 2i and 2i + 1 for each pair i, [N]."""
    e = unit(embeddings_ND)
    distances: Floats = np.square(e[0::2] - e[1::2]).sum(1)
    return distances


def kfold(distances_N: Floats, same_N: Bools, folds: int = FOLDS) -> Folds:
    """Accuracy of each fold at the threshold that is best on the others. Folds are contiguous and
    of equal size, but for one pair; each needs a pair."""
    fold_N = fold_of(len(same_N), folds)
    accepted_FT = _accepted(distances_N, fold_N, THRESHOLDS, same_N, folds)
    wrongly_FT = _accepted(distances_N, fold_N, THRESHOLDS, ~same_N, folds)
    different_F = np.bincount(fold_N[~same_N], minlength=folds)
    correct_FT = accepted_FT + different_F[:, None] - wrongly_FT
    best_F = (correct_FT.sum(0) - correct_FT).argmax(1)
    threshold_F = THRESHOLDS[best_F]
    accuracy_F = correct_FT[np.arange(folds), best_F] / np.bincount(fold_N, minlength=folds)
    return Folds(accuracy_F, threshold_F, (distances_N < threshold_F[fold_N]) == same_N)


def val_at_far(distances_N: Floats, same_N: Bools, far: float = VAL_FAR, folds: int = FOLDS) -> Val:
    """The share of genuine pairs that is accepted at a threshold at which the other folds have this
    FAR: it is interpolated between their FARs at `VAL_THRESHOLDS`, and 0 where they never reach
    it. None where one kind of pair is missing."""
    fold_N = fold_of(len(same_N), folds)
    different_F = np.bincount(fold_N[~same_N], minlength=folds)
    others_F = (different_F.sum() - different_F).clip(1)
    wrongly_FT = _accepted(distances_N, fold_N, VAL_THRESHOLDS, ~same_N, folds)
    far_FT = (wrongly_FT.sum(0) - wrongly_FT) / others_F[:, None]
    threshold_F = np.array(
        [np.interp(far, row, VAL_THRESHOLDS) if row.max() >= far else 0.0 for row in far_FT]
    )
    accepted_N = distances_N < threshold_F[fold_N]
    vals_F, fars_F = (_shares(accepted_N, kind, fold_N, folds) for kind in (same_N, ~same_N))
    if not len(vals_F) or not len(fars_F):
        return Val(None, None, None)
    return Val(float(vals_F.mean()), float(vals_F.std()), float(fars_F.mean()))


def best_accuracy(scores_N: Floats, same_N: Bools) -> float:
    """Accuracy at the one threshold that is best over all pairs: optimistic, for comparison with
    reports that use it."""
    order = np.argsort(-scores_N, kind="stable")
    hits = np.concatenate([[0], np.cumsum(np.where(same_N[order], 1, -1))])
    # Only cuts between different scores are thresholds.
    cuts = np.concatenate([[True], np.diff(scores_N[order]) != 0, [True]])
    return float(((~same_N).sum() + hits[cuts].max()) / len(same_N))


def fold_of(pairs: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each pair, [N]: contiguous parts, the first ones a pair longer where the pairs do
    not divide."""
    sizes = [len(part) for part in np.array_split(np.empty(pairs), folds)]
    return np.repeat(np.arange(folds), sizes)


def _accepted(
    distances_N: Floats, fold_N: NDArray[np.int64], thresholds_T: Floats, kind_N: Bools, folds: int
) -> NDArray[np.int64]:
    """How many pairs of this kind each fold has below each threshold, [F, T]."""
    above_N = np.searchsorted(thresholds_T, distances_N[kind_N], side="right")
    width = len(thresholds_T) + 1
    counts = np.bincount(fold_N[kind_N] * width + above_N, minlength=folds * width)
    return counts.reshape(folds, width)[:, :-1].cumsum(1)


def _shares(accepted_N: Bools, kind_N: Bools, fold_N: NDArray[np.int64], folds: int) -> Floats:
    """The share of the pairs of this kind that is accepted, of each fold that has such a pair."""
    of_kind_F = np.bincount(fold_N[kind_N], minlength=folds)
    accepted_F = np.bincount(fold_N[kind_N & accepted_N], minlength=folds)
    shares: Floats = accepted_F[of_kind_F > 0] / of_kind_F[of_kind_F > 0]
    return shares
