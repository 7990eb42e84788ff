"""True accepts at a wanted rate of false accepts, by the two definitions that are in use.

At IJB-C's size (15.7 million pairs) a ROC takes two seconds; scores are compared as they are, so
that ties are one threshold.
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
        """The ROC of pairs of both kinds."""
        order_P = np.argsort(scores_P)[::-1]
        sorted_P, genuine_P = scores_P[order_P], same_P[order_P]
        last_T = np.append(np.flatnonzero(np.diff(sorted_P)), len(sorted_P) - 1)
        true_T = np.cumsum(genuine_P)[last_T]
        return cls(
            np.concatenate([[np.inf], sorted_P[last_T]]),
            np.concatenate([[0], last_T + 1 - true_T]),
            np.concatenate([[0], true_T]),
        )

    @property
    def num_impostors(self) -> int:
        return int(self.false_accepts_T[-1])

    @property
    def num_genuine(self) -> int:
        return int(self.true_accepts_T[-1])

    @cached_property
    def far_T(self) -> NDArray[np.float64]:
        return self.false_accepts_T / self.num_impostors

    @cached_property
    def tar_T(self) -> NDArray[np.float64]:
        return self.true_accepts_T / self.num_genuine

    @property
    def auc(self) -> float:
        """The area under the curve by trapezes."""
        return float(np.trapezoid(self.tar_T, self.far_T))

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
        off = np.abs(self.far_T[self._corners] - far)
        return self._at(int(self._corners[len(off) - 1 - int(off[::-1].argmin())]))

    def conservative(self, far: float) -> OperatingPoint | None:
        """The most true accepts at a rate of false accepts that does not exceed the wanted one.
        None where the set has too few impostor pairs for a single false accept at that rate."""
        if far * self.num_impostors < 1:
            return None
        return self._at(int(np.searchsorted(self.far_T, far, side="right")) - 1)

    def interval(self, far: float, rng: np.random.Generator) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the conservative TAR; None where there is none.

        Pairs are resampled, genuine and impostor ones each for themselves. Pairs that share a
        template are taken as independent, so that it is narrower than one over people would be.
        The resamples are drawn without being made: of N impostor scores in falling order that are
        drawn N times, rank k + 1 has number ceil(N u), u being that order statistic of N uniform
        numbers, which is Beta(k + 1, N - k); how many genuine pairs score above it is binomial.
        """
        drawn, allowed = self.num_impostors, _allowed_accepts(far, self.num_impostors)
        if allowed < 1 or allowed >= drawn:
            return None
        u = rng.beta(allowed + 1, drawn - allowed, _REPLICATES)
        rows = np.searchsorted(self.false_accepts_T, np.ceil(drawn * u).clip(1))
        tars = rng.binomial(self.num_genuine, self.tar_T[rows - 1]) / self.num_genuine
        low, high = np.quantile(tars, [0.025, 0.975])
        return float(low), float(high)

    def _at(self, row: int) -> OperatingPoint:
        return OperatingPoint(
            float(self.tar_T[row]),
            float(self.far_T[row]),
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
        return self.far_T[rows], self.tar_T[rows]


def _allowed_accepts(far: float, num_impostors: int) -> int:
    """The most false accepts whose rate does not exceed the wanted one."""
    allowed = int(far * num_impostors) + 1  # the product is rounded
    while allowed / num_impostors > far:
        allowed -= 1
    return allowed
