"""Error versus discard: how the false non-match rate falls when the pairs of the lowest quality are
left out, in numpy.

Shapes: N pairs, F fractions.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS = 20
FRACTIONS = np.arange(STEPS) / STEPS
"""Of the pairs that are left out: 0 to 0.95."""


class Pairs(NamedTuple):
    """Scored pairs."""

    scores_N: NDArray[np.float64]
    """Cosines."""
    same_N: NDArray[np.bool_]
    """Whether both images show one identity."""


def pair_quality(qualities_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """The quality of each pair, which is that of its worse image, [N]: images 2i and 2i + 1 are
    pair i."""
    worse: NDArray[np.float64] = qualities_M.astype(np.float64).reshape(-1, 2).min(1)
    return worse


def fixed_threshold(
    pairs: Pairs, quality_N: NDArray[np.float64], fmr: float
) -> NDArray[np.float64] | None:
    """FNMR [F] at one threshold for all fractions: the one at which all pairs of two identities
    have the highest false match rate that does not exceed `fmr`. Pairs of one identity are left
    out, in the order of their quality, those of one quality in the order in which they stand
    (Grother and Tabassi, 2007; error versus discard characteristic of ISO/IEC 29794-1).

    None where the pairs of two identities are too few for such a rate, or there is none of one
    identity.
    """
    impostors_n = np.sort(pairs.scores_N[~pairs.same_N])[::-1]
    if fmr * len(impostors_n) < 1 or not pairs.same_N.any():
        return None
    num_accepted = int((np.arange(len(impostors_n) + 1) / len(impostors_n) <= fmr).sum()) - 1
    # A pair above this is taken for one identity.
    threshold = impostors_n[num_accepted] if num_accepted < len(impostors_n) else -np.inf
    order = np.argsort(quality_N[pairs.same_N], kind="stable")
    rejected_n = (pairs.scores_N[pairs.same_N] <= threshold)[order]
    return np.array([rejected_n[_left_out(step, len(rejected_n)) :].mean() for step in _steps()])


def threshold_anew(
    pairs: Pairs, quality_N: NDArray[np.float64], fmr: float
) -> NDArray[np.float64] | None:
    """FNMR [F] where pairs of both kinds are left out and the threshold is estimated anew from
    those that remain, as CR-FIQA's program has it (`ERC/erc.py`): the one, of the distances that
    occur, arccos(cosine) / pi, whose false match rate is nearest to `fmr`, the largest of several;
    pairs at a smaller distance are taken for one identity.

    None as in `fixed_threshold`, and where no pair of one of both kinds remains.
    """
    if fmr * (~pairs.same_N).sum() < 1 or not pairs.same_N.any():
        return None
    distance_N = np.arccos(pairs.scores_N.clip(-1, 1)) / np.pi
    order, found = np.argsort(quality_N, kind="stable"), []
    for step in _steps():
        kept_n = order[_left_out(step, len(order)) :]
        distance_n, same_n = distance_N[kept_n], pairs.same_N[kept_n]
        genuine, impostors = distance_n[same_n], np.sort(distance_n[~same_n])
        if not len(genuine) or not len(impostors):
            return None
        thresholds = np.unique(distance_n)[::-1]
        fmrs = np.searchsorted(impostors, thresholds, side="right") / len(impostors)
        threshold = thresholds[np.abs(fmrs - fmr).argmin()]
        found.append(1 - (genuine < threshold).sum() / len(genuine))
    return np.array(found)


def best_possible(fnmr: float) -> NDArray[np.float64]:
    """FNMR [F] at one threshold if the pairs that are left out first were those that are rejected;
    `fnmr` is that of all pairs."""
    best: NDArray[np.float64] = ((fnmr - FRACTIONS) / (1 - FRACTIONS)).clip(min=0)
    return best


def area(fnmr_F: NDArray[np.float64]) -> float:
    """The area under the curve by trapezes, over the fractions 0 to 0.95."""
    return float(np.trapezoid(fnmr_F, FRACTIONS))


def _steps() -> range:
    return range(STEPS)


def _left_out(step: int, num_pairs: int) -> int:
    """How many of so many pairs are left out at this fraction, in whole numbers."""
    return step * num_pairs // STEPS
