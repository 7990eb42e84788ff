"""How many genuine and impostor pairs are accepted at each threshold of their scores: ROC, TAR at
FAR by two definitions, EER and AUC.

A pair is accepted where its score is at or above the threshold. Shapes: N pairs, K distinct scores
and one threshold above all of them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Roc:
    """The counts of accepted pairs at every threshold, from infinity down to the lowest score."""

    thresholds_K: Floats
    false_K: Ints
    """Impostor pairs that are accepted."""
    true_K: Ints
    """Genuine pairs that are accepted."""
    genuine: int
    impostors: int

    @cached_property
    def far(self) -> NDArray[np.float64]:
        """The share of impostor pairs that is accepted, [K]; 0 where there are none."""
        return self.false_K / max(self.impostors, 1)

    @cached_property
    def tar(self) -> NDArray[np.float64]:
        """The share of genuine pairs that is accepted, [K]; 0 where there are none."""
        return self.true_K / max(self.genuine, 1)

    @cached_property
    def corners(self) -> Ints:
        """The places that do not lie on a straight line between their neighbours, and both ends."""
        bent = (np.diff(self.false_K, 2) != 0) | (np.diff(self.true_K, 2) != 0)
        ends = np.array([True])
        return np.flatnonzero(np.concatenate([ends, bent, ends])[: len(self.false_K)])

    @property
    def has_both(self) -> bool:
        """Whether there are pairs of both kinds."""
        return self.genuine > 0 and self.impostors > 0


@dataclass(frozen=True)
class Operating:
    """One threshold, and what it accepts."""

    threshold: float
    tar: float
    far: float
    """The share of impostor pairs that is in fact accepted."""
    false_accepts: int


def roc(scores_N: Floats, same_N: NDArray[np.bool_]) -> Roc:
    """The ROC of pairs with these scores, `same_N` of which are genuine. Scores must be finite."""
    # Only values are sorted, which is five times as fast as their order where they are millions.
    sorted_N = np.sort(scores_N)[::-1]
    last_N = np.append(sorted_N[1:] != sorted_N[:-1], np.ones(min(len(sorted_N), 1), bool))
    accepted_K = np.flatnonzero(last_N) + 1
    distinct_K = sorted_N[accepted_K - 1]
    place = len(distinct_K) - 1 - np.searchsorted(distinct_K[::-1], scores_N[same_N])
    true_K = np.bincount(place, minlength=len(distinct_K)).cumsum()
    return Roc(
        np.concatenate([[np.inf], distinct_K]),
        np.concatenate([[0], accepted_K - true_K]),
        np.concatenate([[0], true_K]),
        int(same_N.sum()),
        int(len(same_N) - same_N.sum()),
    )


def tar_at(curve: Roc, far: float) -> Operating | None:
    """The highest TAR at which no more than floor(`far` x impostors) impostor pairs are accepted.
    None where that is less than one pair, so that the set cannot tell, or there are no genuine
    pairs."""
    allowed = int(far * curve.impostors + _ROUNDING)
    if allowed < 1 or not curve.has_both:
        return None
    return operating(curve, int(np.searchsorted(curve.false_K, allowed, side="right")) - 1)


def tar_nearest(curve: Roc, far: float) -> Operating | None:
    """The point of the ROC whose FAR is nearest to `far`, as InsightFace's eval_ijbc.py has it: the
    FAR may be exceeded. Of equally near points it is that of the highest TAR. Points on a straight
    line between their neighbours are no candidates, as scikit-learn's roc_curve drops them. None
    where one kind of pair is missing."""
    if not curve.has_both:
        return None
    distance = np.abs(curve.far[curve.corners] - far)
    nearest = len(distance) - 1 - int(distance[::-1].argmin())
    return operating(curve, int(curve.corners[nearest]))


def operating(curve: Roc, place: int) -> Operating:
    """The point of the ROC at this place."""
    false = int(curve.false_K[place])
    return Operating(
        float(curve.thresholds_K[place]),
        float(curve.true_K[place] / max(curve.genuine, 1)),
        false / max(curve.impostors, 1),
        false,
    )


def auc(curve: Roc) -> float | None:
    """Area under the ROC by trapezes; None where one kind of pair is missing."""
    return float(np.trapezoid(curve.tar, curve.far)) if curve.has_both else None


def eer(curve: Roc) -> float | None:
    """The rate at which as many impostor pairs are accepted as genuine pairs are rejected, on
    straight lines between the points of the ROC; None where one kind of pair is missing."""
    if not curve.has_both:
        return None
    far_K, gap_K = curve.far, curve.far - (1 - curve.tar)
    after = int(np.argmax(gap_K >= 0))
    before = max(after - 1, 0)
    rise = gap_K[after] - gap_K[before]
    share = -gap_K[before] / rise if rise > 0 else 0.0
    return float(far_K[before] + share * (far_K[after] - far_K[before]))
