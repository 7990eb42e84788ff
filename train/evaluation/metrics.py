"""Verification metrics of pair scores, in numpy: 10-fold accuracy, TAR at FAR, ROC, AUC."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDS = 10
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
THRESHOLDS = np.arange(0, 4, 0.01)
"""Thresholds of the squared distance that InsightFace's eval/verification.py tries."""


class Report(NamedTuple):
    """The metrics of one verification set. None is what it cannot tell: a TAR at a FAR finer than
    one negative pair, the AUC of one kind of pair."""

    pairs: int
    accuracy: float
    accuracy_std: float
    best_accuracy: float
    auc: float | None
    tar_at_far: dict[str, float | None]


def cosine_scores(embeddings_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    """The cosine of embeddings 2i and 2i + 1 for each pair i, [N / 2]."""
    e = embeddings_ND.astype(np.float64)
    e /= np.linalg.norm(e, axis=1, keepdims=True).clip(1e-12)
    scores: NDArray[np.float64] = (e[0::2] * e[1::2]).sum(1)
    return scores


def report(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> Report:
    """The metrics of pairs with these scores, by whether each shows one identity."""
    folds = kfold_accuracy(scores, same)
    far, tar = roc(scores, same)
    negatives = int((~same).sum())
    area = auc(far, tar) if same.any() and not same.all() else None
    tars = {
        f"{wanted:.0e}": tar_at(far, tar, wanted) if wanted * negatives >= 1 else None
        for wanted in FARS
    }
    return Report(
        len(same), float(folds.mean()), float(folds.std()), best_accuracy(scores, same), area, tars
    )


def kfold_accuracy(
    scores: NDArray[np.float64], same: NDArray[np.bool_], folds: int = FOLDS
) -> NDArray[np.float64]:
    """Accuracy of each fold at the threshold that is best on the others (LFW's protocol; unshuffled
    folds, as InsightFace); each fold needs a pair."""
    distance = 2 - 2 * scores
    correct = (distance[:, None] < THRESHOLDS) == same[:, None]
    parts = np.array_split(np.arange(len(same)), folds)
    accuracies = []
    for part in parts:
        rest = np.setdiff1d(np.arange(len(same)), part)
        accuracies.append(correct[part, correct[rest].mean(0).argmax()].mean())
    return np.array(accuracies)


def best_accuracy(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Accuracy at the one threshold that is best over all pairs: optimistic, for comparison with
    reports that use it."""
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))])
    # Only cuts between different scores are thresholds.
    cuts = np.concatenate([[True], np.diff(scores[order]) != 0, [True]])
    return float(((~same).sum() + hits[cuts].max()) / len(same))


def roc(
    scores: NDArray[np.float64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(FAR, TAR) at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    cuts = np.append(np.diff(scores[order]) != 0, True)
    tar = np.cumsum(same[order])[cuts] / max(same.sum(), 1)
    far = np.cumsum(~same[order])[cuts] / max((~same).sum(), 1)
    return np.concatenate([[0.0], far]), np.concatenate([[0.0], tar])


def tar_at(far: NDArray[np.float64], tar: NDArray[np.float64], wanted: float) -> float:
    """The highest TAR of a threshold whose FAR does not exceed `wanted`."""
    return float(tar[far <= wanted].max())


def auc(far: NDArray[np.float64], tar: NDArray[np.float64]) -> float:
    """Area under the ROC by trapezes."""
    return float(np.trapezoid(tar, far))
