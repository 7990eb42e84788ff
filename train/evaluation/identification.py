"""Identification: whom of a gallery a probe shows, in closed and in open sets, as figures.

A probe is *mated* where its identity has an entry in the gallery. Shapes: Q probes, K entries that
were found for each, best first, N entries of the gallery.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation.nearest import Nearest

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOBODY = -1
"""The label of an entry that is of none of the probes' identities: a distractor."""


class OpenSet(NamedTuple):
    """What a gallery is worth where some probes have no mate in it, at one threshold."""

    tpir: float
    """True positive identification rate: the share of mated probes whose first entry is of their
    identity, at a score that passes the threshold."""
    threshold: float
    fpir: float
    """False positive identification rate that is achieved: the share of probes without a mate for
    which at least one entry is at or above the threshold."""


def first_hits(found: Nearest, label_Q: Ints, label_N: Ints) -> Ints:
    """The rank, from 1 on, of the first entry of each probe's identity; 0 where none of the K is.

    It is a rank among entries: where an identity has several, any of them is a hit. `label_N` are
    the identities of the gallery's entries, by row.
    """
    labels_QK = np.where(found.rows_QK < 0, NOBODY, label_N[found.rows_QK])
    right_QK = labels_QK == label_Q[:, None]
    return np.where(right_QK.any(1), right_QK.argmax(1) + 1, 0).astype(np.int64)


def cmc(first_Q: Ints, ranks: Sequence[int]) -> list[float]:
    """Cumulative match characteristic: the share of probes whose first hit (as `first_hits` gives
    it) is at each rank or before. Give mated probes only; NaN without one."""
    if not len(first_Q):
        return [float("nan")] * len(ranks)
    return [float(((first_Q > 0) & (first_Q <= rank)).mean()) for rank in ranks]


def open_set_by_element(
    best_Q: NDArray[np.floating], first_Q: Ints, mated_Q: Bools, fpir: float
) -> OpenSet | None:
    """The form of InsightFace's `ijb_evals`: the threshold is the element max(int(N x FPIR) - 1, 0)
    of the N best scores of probes without a mate, sorted downwards, and a hit has to exceed it.

    Too few such probes for the rate are not refused: the achieved rate then is above `fpir`.
    `best_Q` is each probe's best score over the whole gallery, `first_Q` as of `first_hits`. None
    where there are no mated probes or none without a mate.
    """
    others = np.sort(best_Q[~mated_Q])[::-1]
    if not len(others) or not mated_Q.any():
        return None
    threshold = others[max(int(len(others) * fpir) - 1, 0)]
    hits = (first_Q[mated_Q] == 1) & (best_Q[mated_Q] > threshold)
    return OpenSet(float(hits.mean()), float(threshold), float((others >= threshold).mean()))


def open_set_at_or_above(
    best_Q: NDArray[np.floating], first_Q: Ints, mated_Q: Bools, fpir: float
) -> OpenSet | None:
    """The general form (that of NIST and of QMUL-SurvFace): the lowest threshold at which no more
    than the share `fpir` of the probes without a mate have an entry at or above it, and a hit is at
    or above it too.

    Arguments as of `open_set_by_element`. None where one search alone is more than that share, as
    then no number of them could show the rate.
    """
    others = np.sort(best_Q[~mated_Q])[::-1]
    allowed = int(len(others) * fpir * (1 + 1e-12))
    if not allowed or not mated_Q.any():
        return None
    threshold = others[-1]
    if allowed < len(others):
        threshold = np.nextafter(others[allowed], np.array(np.inf, others.dtype))
    hits = (first_Q[mated_Q] == 1) & (best_Q[mated_Q] >= threshold)
    return OpenSet(float(hits.mean()), float(threshold), float((others >= threshold).mean()))


class TradeOff(NamedTuple):
    """TPIR over FPIR, a point for each threshold at which FPIR changes, by rising FPIR."""

    fpir: NDArray[np.float64]
    tpir: NDArray[np.float64]


def trade_off(best_Q: NDArray[np.floating], first_Q: Ints, mated_Q: Bools) -> TradeOff:
    """TPIR at each FPIR that the probes without a mate can show, both with scores at or above the
    threshold; needs some of both kinds."""
    others = np.unique(best_Q[~mated_Q])[::-1]
    right = np.sort(best_Q[mated_Q & (first_Q == 1)])
    all_others = np.sort(best_Q[~mated_Q])
    fpir = 1 - np.searchsorted(all_others, others, "left") / len(all_others)
    tpir = (len(right) - np.searchsorted(right, others, "left")) / mated_Q.sum()
    return TradeOff(fpir, tpir)


def pair_ranks(
    probe_unit_QD: NDArray[np.float32],
    label_Q: Ints,
    distractors_QK: NDArray[np.float32],
) -> Ints:
    """MegaFace's ranks: of each ordered pair of two images of one person, that of the second among
    the distractors when the first is the probe; from 1 on, in no order that means anything.

    `distractors_QK` are the best distractors of each probe: a rank beyond K is K + 1. A distractor
    that scores as the mate does stands before it.
    """
    ranks = []
    order = np.argsort(label_Q, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(label_Q[order])) + 1):
        unit = probe_unit_QD[rows].astype(np.float64)
        scores = (unit @ unit.T).astype(np.float32)
        for place, row in enumerate(rows):
            mates = np.delete(scores[place], place)
            worse = np.searchsorted(distractors_QK[row][::-1], mates, "left")
            ranks.append(distractors_QK.shape[1] - worse + 1)
    return np.concatenate(ranks) if ranks else np.empty(0, np.int64)
