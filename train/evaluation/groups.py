"""Scored pairs told apart by groups of people: what one threshold for all does to each group.

Shapes: N pairs, G groups, B replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.bootstrap import (
    REPLICATES,
    SEED,
    Interval,
    interval,
    pair_weights,
)
from manyfaces.train.evaluation.operating_points import OperatingPoint, Roc
from manyfaces.train.evaluation.result import Curve, Line, Quantity

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FEW = "too few pairs to tell"
NO_GROUP = -1
_POINTS = 100


def group_quantities(fmr: float) -> Sequence[Quantity]:
    """What `group_figures` describes as scalars, at a threshold of this FMR."""
    at = f"at one threshold of FMR {fmr:.0e}"
    return (
        Quantity("accuracy_worst", "accuracy of the worst group (10-fold)", "worst", unknown=FEW),
        Quantity("accuracy_mean", "accuracy, mean over groups (10-fold)", "mean", unknown=FEW),
        Quantity("accuracy_std", "accuracy, deviation over groups", "deviation", unknown=FEW),
        Quantity("accuracy_gap", "accuracy, best less worst group", "", unknown=FEW),
        Quantity("tar_worst", f"lowest TAR of a group, {at}", "lowest TAR", unknown=FEW),
        Quantity("tar_gap", f"highest less lowest TAR, {at}", "TAR gap", unknown=FEW),
        Quantity("tar_ratio", f"highest by lowest TAR, {at}", "", ".3f", ".3f", unknown=FEW),
        Quantity("fmr_worst", f"highest FMR of a group, {at}", "highest FMR", ".3%", unknown=FEW),
        Quantity("fmr_gap", f"highest less lowest FMR, {at}", "", ".3%", unknown=FEW),
        Quantity("fmr_ratio", f"highest by lowest FMR, {at}", "FMR ratio", ".2f", unknown=FEW),
        Quantity("threshold", f"threshold of the cosine with FMR {fmr:.0e}", "", ".3f"),
    )


@dataclass(frozen=True)
class GroupFigures:
    """The fields of a `Result` about groups."""

    scalars: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    curves: Mapping[str, Curve]
    table: Mapping[str, Mapping[str, float | None]]
    """By group: pairs of each kind, accuracy, TAR and FMR with their intervals."""


def group_figures(
    name: str,
    scores_N: NDArray[np.floating],
    same_N: Bools,
    group_N: NDArray[np.integer],
    groups: Sequence[str],
    fmr: float,
    identities_N2: NDArray[np.integer] | None = None,
) -> GroupFigures:
    """What groups of pairs come to at the threshold at which no more than `fmr` of all impostor
    pairs are accepted, those of no group (`NO_GROUP`) included.

    Intervals are by drawing identities, where they are known, else pairs; the threshold stays. A
    ratio is not known where its divisor is 0, and nothing is where the set has too few impostor
    pairs for such a threshold. The accuracy of a group is that of its own folds, at its own
    thresholds; it is not known of fewer pairs than folds.
    """
    roc = Roc.of(scores_N, same_N)
    point = roc.conservative(fmr) if roc.has_both else None
    accuracy = {group: _accuracy(scores_N, same_N, group_N == g) for g, group in enumerate(groups)}
    scalars: dict[str, float | None] = dict.fromkeys(each.name for each in group_quantities(fmr))
    scalars |= _spread("accuracy", list(accuracy.values()))
    if point is None:
        rows = {group: {"accuracy": accuracy[group]} for group in groups}
        return GroupFigures(scalars, {}, {}, rows)
    counts_4G, drawn_B4G = _counts(scores_N, same_N, group_N, len(groups), point, identities_N2)
    rates_2G, rates_B2G = _rates(counts_4G), _rates(drawn_B4G)
    scalars |= {"threshold": point.threshold, **_extremes(rates_2G)}
    intervals = {}
    for quantity, values_B in _extremes_of_replicates(rates_B2G).items():
        if scalars[quantity] is not None and np.isfinite(values_B).any():
            intervals[quantity] = interval(values_B[np.isfinite(values_B)])
    table: dict[str, dict[str, float | None]] = {}
    for g, group in enumerate(groups):
        row: dict[str, float | None] = {
            "genuine": int(counts_4G[1, g]),
            "impostors": int(counts_4G[3, g]),
            "accuracy": accuracy[group],
        }
        for place, rate in enumerate(("tar", "fmr")):
            ends = _interval(rates_B2G[:, place, g])
            row |= {rate: _known(rates_2G[place, g]), f"{rate}_low": ends[0]}
            row[f"{rate}_high"] = ends[1]
        table[group] = row
    curves = _curves(name, roc, scores_N, same_N, group_N, groups)
    return GroupFigures(scalars, intervals, curves, table)


def _accuracy(scores_N: NDArray[np.floating], same_N: Bools, of_N: Bools) -> float | None:
    if of_N.sum() < metrics.FOLDS:
        return None
    distances = 2 - 2 * scores_N[of_N].astype(np.float64)
    return float(metrics.kfold(distances, same_N[of_N]).accuracy_F.mean())


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """How far the values lie apart; nothing where one is not known."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {}
    return {
        f"{name}_worst": min(known),
        f"{name}_mean": float(np.mean(known)),
        f"{name}_std": float(np.std(known)),
        f"{name}_gap": max(known) - min(known),
    }


def _counts(
    scores_N: NDArray[np.floating],
    same_N: Bools,
    group_N: NDArray[np.integer],
    num_groups: int,
    point: OperatingPoint,
    identities_N2: NDArray[np.integer] | None,
) -> tuple[Floats, Floats]:
    """Accepted and all genuine, accepted and all impostor pairs of each group, [4, G], and in each
    replicate, [B, 4, G]."""
    accepted_N = scores_N >= point.threshold
    kinds = (same_N & accepted_N, same_N, ~same_N & accepted_N, ~same_N)
    of_group_NG = group_N[:, None] == np.arange(num_groups)
    counts_4G = np.stack([of_group_NG[kind].sum(0) for kind in kinds]).astype(np.float64)
    if identities_N2 is None:
        rng, drawn = np.random.default_rng(SEED), np.empty((REPLICATES, 4, num_groups))
        for accepted, every in ((0, 1), (2, 3)):
            share_G = counts_4G[accepted] / counts_4G[every].clip(1)
            size = (REPLICATES, num_groups)
            drawn[:, accepted] = rng.binomial(counts_4G[every].astype(np.int64), share_G, size)
            drawn[:, every] = counts_4G[every]
        return counts_4G, drawn
    is_kind_NK = np.stack([of_group_NG & kind[:, None] for kind in kinds], 1)
    flat_NK = is_kind_NK.reshape(len(scores_N), -1).astype(np.float32)
    parts = [weights_BN @ flat_NK for weights_BN in pair_weights(len(scores_N), identities_N2)]
    return counts_4G, np.concatenate(parts).reshape(-1, 4, num_groups)


def _rates(counts_X4G: Floats) -> Floats:
    """TAR and FMR of each group, [..., 2, G]; NaN where a group has no pair of the kind."""
    every = counts_X4G[..., 1::2, :]
    with np.errstate(invalid="ignore"):
        rates: Floats = counts_X4G[..., 0::2, :] / np.where(every > 0, every, np.nan)
    return rates


def _extremes(rates_2G: Floats) -> dict[str, float | None]:
    of_one = _extremes_of_replicates(rates_2G[None])
    return {name: _known(values[0]) for name, values in of_one.items()}


def _extremes_of_replicates(rates_B2G: Floats) -> dict[str, Floats]:
    """The worst rate, the gap and the ratio of the highest by the lowest, of each replicate; NaN
    where they are not known."""
    found: dict[str, Floats] = {}
    for place, (name, worst) in enumerate((("tar", np.min), ("fmr", np.max))):
        rates_BG = rates_B2G[:, place]
        high_B, low_B = rates_BG.max(1), rates_BG.min(1)
        ratio_B = np.divide(high_B, low_B, out=np.full(len(high_B), np.nan), where=low_B > 0)
        found |= {
            f"{name}_worst": worst(rates_BG, axis=1),
            f"{name}_gap": high_B - low_B,
            f"{name}_ratio": ratio_B,
        }
    return found


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(values_B: Floats) -> tuple[float | None, float | None]:
    known = values_B[np.isfinite(values_B)]
    return interval(known) if len(known) else (None, None)


def _curves(
    name: str,
    roc: Roc,
    scores_N: NDArray[np.floating],
    same_N: Bools,
    group_N: NDArray[np.integer],
    groups: Sequence[str],
) -> dict[str, Curve]:
    """TAR and FMR of each group over the FMR of all at the same threshold."""
    accepts = np.unique(np.geomspace(1, roc.num_impostors, _POINTS).astype(np.int64))
    places = np.searchsorted(roc.false_accepts_T, accepts, side="right") - 1
    thresholds, far = roc.threshold_T[places], roc.far[places]
    curves = {}
    for kind, of_all, title, is_kind_N in (
        ("tar", roc.tar[places], "true accept rate", same_N),
        ("fmr", far, "false match rate", ~same_N),
    ):
        lines: dict[str, Line] = {}
        for g, group in enumerate(groups):
            own = np.sort(scores_N[is_kind_N & (group_N == g)])
            if len(own):
                accepted = len(own) - np.searchsorted(own, thresholds, side="left")
                lines[group] = far, accepted / len(own)
        curves[f"{kind}_by_group"] = Curve(
            f"{name}: {title} by group, at one threshold",
            "false match rate of all pairs",
            title,
            far,
            of_all,
            log_x=True,
            log_y=kind == "fmr",
            lines=lines,
        )
    return curves
