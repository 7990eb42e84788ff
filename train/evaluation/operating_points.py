"""True accepts at a wanted rate of false accepts, by the two definitions that are in use.

At IJB-C's size (15.7 million pairs) a ROC takes about two seconds; scores are compared as they are,
so that ties are one threshold.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_REPLICATES = 2000


class OperatingPoint(NamedTuple):
    """What a threshold does."""

    tar: float
    """Share of the genuine pairs whose score is at the threshold or above."""
    far: float
    """Share of the impostor pairs: what was achieved, not what was wanted."""
    false_accepts: int
    threshold: float
    """Infinite where no pair at all is accepted."""


@dataclass(frozen=True)
class Roc:
    """All thresholds of a set of scored pairs, from none accepted to all: T distinct scores and
    infinity before them."""

    threshold_T: NDArray[np.floating]
    false_accepts_T: Ints
    true_accepts_T: Ints

    @classmethod
    def of(cls, scores_P: NDArray[np.floating], same_P: NDArray[np.bool_]) -> "Roc":
        """The ROC of pairs, of which there is one at least."""
        # Scores are sorted without their labels: of millions, their order takes five times as long.
        sorted_P = np.sort(scores_P)[::-1]
        last_T = np.append(np.flatnonzero(np.diff(sorted_P)), len(sorted_P) - 1)
        distinct_T = sorted_P[last_T]
        place_p = len(distinct_T) - 1 - np.searchsorted(distinct_T[::-1], scores_P[same_P])
        true_T = np.bincount(place_p, minlength=len(distinct_T)).cumsum()
        return cls(
            np.concatenate([[np.inf], distinct_T]),
            np.concatenate([[0], last_T + 1 - true_T]),
            np.concatenate([[0], true_T]),
        )

    @property
    def num_impostors(self) -> int:
        return int(self.false_accepts_T[-1])

    @property
    def num_genuine(self) -> int:
        return int(self.true_accepts_T[-1])

    @property
    def has_both(self) -> bool:
        """Whether there are pairs of both kinds, without which no rate says anything."""
        return self.num_impostors > 0 and self.num_genuine > 0

    @cached_property
    def far(self) -> NDArray[np.float64]:
        """The rate of false accepts at each threshold, [T]; 0 without impostor pairs."""
        return self.false_accepts_T / max(self.num_impostors, 1)

    @cached_property
    def tar(self) -> NDArray[np.float64]:
        """The rate of true accepts at each threshold, [T]; 0 without genuine pairs."""
        return self.true_accepts_T / max(self.num_genuine, 1)

    @property
    def auc(self) -> float:
        """The area under the curve by trapezes."""
        return float(np.trapezoid(self.tar, self.far))

    @property
    def eer(self) -> float:
        """The rate at which as many impostor pairs are accepted as genuine pairs are rejected, on
        straight lines between the points of the curve."""
        sum_T = self.far + self.tar
        after = int(np.searchsorted(sum_T, 1.0))
        before = max(after - 1, 0)
        share = (1 - sum_T[before]) / max(sum_T[after] - sum_T[before], 1e-12)
        return float(self.far[before] + share * (self.far[after] - self.far[before]))

    @cached_property
    def _corners(self) -> Ints:
        """The thresholds that scikit-learn's `roc_curve` keeps by default: those in a straight line
        with both neighbours go, the point of no accepts stays."""
        false_T, true_T = self.false_accepts_T[1:], self.true_accepts_T[1:]
        bends = (np.diff(false_T, 2) != 0) | (np.diff(true_T, 2) != 0)
        kept = np.concatenate([[True], bends, [True]])[: len(false_T)]
        return np.concatenate([[0], np.flatnonzero(kept) + 1])

    def nearest(self, far: float) -> OperatingPoint:
        """InsightFace's figure (`eval_ijbc.py`): the corner of the curve whose rate of false
        accepts is nearest to the wanted one, below it or above; of several the one with most
        accepts."""
        off = np.abs(self.far[self._corners] - far)
        return self._at(int(self._corners[len(off) - 1 - int(off[::-1].argmin())]))

    def conservative(self, far: float) -> OperatingPoint | None:
        """The most true accepts at a rate of false accepts that does not exceed the wanted one.
        None where the set has too few impostor pairs for a single false accept at that rate."""
        if far * self.num_impostors < 1:
            return None
        return self._at(int(np.searchsorted(self.far, far, side="right")) - 1)

    def interval(self, far: float, rng: np.random.Generator) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the conservative TAR; None where there is none.

        Pairs are resampled, genuine and impostor ones each for themselves. Pairs that share a
        template are taken as independent, so that it is narrower than one over people would be.
        The resamples are drawn without being made: of N impostor scores in falling order that are
        drawn N times, rank k + 1 has number ceil(N u), u being that order statistic of N uniform
        numbers, which is Beta(k + 1, N - k); how many genuine pairs score above it is binomial.
        """
        drawn, allowed = self.num_impostors, allowed_accepts(far, self.num_impostors)
        if allowed < 1 or allowed >= drawn:
            return None
        u = rng.beta(allowed + 1, drawn - allowed, _REPLICATES)
        rows = np.searchsorted(self.false_accepts_T, np.ceil(drawn * u).clip(1))
        tars = rng.binomial(self.num_genuine, self.tar[rows - 1]) / self.num_genuine
        low, high = np.quantile(tars, [0.025, 0.975])
        return float(low), float(high)

    def _at(self, row: int) -> OperatingPoint:
        return OperatingPoint(
            float(self.tar[row]),
            float(self.far[row]),
            int(self.false_accepts_T[row]),
            float(self.threshold_T[row]),
        )

    def thinned(self, points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true accept rates of at most so many thresholds, evenly spread over the
        logarithm of the false accepts; rates of 0 are left out."""
        first = int(np.searchsorted(self.false_accepts_T, 1))
        wanted = np.geomspace(1, self.num_impostors, points)
        rows = np.unique(np.searchsorted(self.false_accepts_T, wanted, side="right") - 1)
        rows = rows[rows >= first]
        return self.far[rows], self.tar[rows]


def allowed_accepts(far: float, num_impostors: int) -> int:
    """The most false accepts whose rate does not exceed the wanted one."""
    allowed = int(far * num_impostors) + 1  # the product is rounded
    while allowed / num_impostors > far:
        allowed -= 1
    return allowed
