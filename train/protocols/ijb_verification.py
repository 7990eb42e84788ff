"""The 1:1 task of IJB: pairs of templates by the cosine of their vectors.

Shapes: K templates, D the embedding, P pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.sources.ijb import TemplatePairs
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.pair_scores import pair_scores
from manyfaces.train.evaluation.result import Curve, Histogram, Quantity, Table
from manyfaces.train.protocols.figures import Figures

FARS = (1e-4, 1e-5, 1e-6, 1e-3, 1e-2, 1e-1)
"""The first is the headline's."""
_SHOWN = (1e-4, 1e-5, 1e-6)
_POINTS_OF_CURVE, _SHOWN_SCORES = 200, 10_000


def _word(far: float) -> str:
    return f"{far:.0e}".replace("e-0", "e-")


def _nearest(far: float) -> Quantity:
    """What InsightFace and those who publish by its script print."""
    label, heading = f"TAR at the FAR nearest to {_word(far)}", f"TAR {_word(far)} (nearest)"
    return Quantity(f"tar_nearest_far_{far:.0e}", label, heading if far in _SHOWN else "")


def _conservative(far: float) -> Quantity:
    heading = f"TAR {_word(far)}" if far in _SHOWN[:2] else ""
    label, unknown = f"TAR at FAR {_word(far)}, not above", "too few pairs to tell"
    return Quantity(f"tar_at_far_{far:.0e}", label, heading, unknown=unknown)


class TemplateVerification:
    """TAR at FAR of pairs of templates, by InsightFace's definition (the FAR that is nearest to the
    wanted one) and by the conservative one (a FAR that does not exceed it), with the FAR that each
    achieves and the interval of the second."""

    quantities: Sequence[Quantity] = (
        *map(_nearest, FARS),
        *map(_conservative, FARS),
        Quantity("auc", "AUC", format=".6f"),
    )

    def __init__(self, pairs: TemplatePairs) -> None:
        self.pairs = pairs

    def figures(self, name: str, unit_KD: NDArray[np.floating]) -> Figures:
        """The figures for these templates, under the name of the result."""
        same_P = self.pairs.same_P
        scores_P = pair_scores(unit_KD, self.pairs.first_P, self.pairs.second_P)
        roc = Roc.of(scores_P, same_P)
        scalars: dict[str, float | None] = {"auc": roc.auc}
        intervals: dict[str, tuple[float, float]] = {}
        rows: dict[str, dict[str, float | None]] = {}
        random = np.random.default_rng(0)
        for far in FARS:
            nearest, below = roc.nearest(far), roc.conservative(far)
            scalars[_nearest(far).name] = nearest.tar
            scalars[_conservative(far).name] = below and below.tar
            if (interval := roc.interval(far, random)) is not None:
                intervals[_conservative(far).name] = interval
            rows[_word(far)] = {
                "nearest: TAR": nearest.tar,
                "nearest: FAR": nearest.far,
                "nearest: false accepts": nearest.false_accepts,
                "not above: TAR": below and below.tar,
                "not above: FAR": below and below.far,
                "not above: false accepts": below and below.false_accepts,
                "not above: threshold": below and below.threshold,
            }
        counts = {"pairs": len(same_P), "genuine": roc.num_genuine, "impostor": roc.num_impostors}
        table: Table = {row: rows[row] for row in map(_word, sorted(FARS))}
        return Figures(
            scalars,
            counts,
            intervals,
            {"roc": _curve(name, roc, random)},
            {"scores": _histogram(name, scores_P, same_P)},
            {"tar_at_far": table},
        )


def _curve(name: str, roc: Roc, random: np.random.Generator) -> Curve:
    far, tar = roc.thinned(_POINTS_OF_CURVE)
    bands = [roc.interval(each, random) for each in far]
    low, high = (
        np.array([at if band is None else band[end] for band, at in zip(bands, tar, strict=True)])
        for end in (0, 1)
    )
    title = f"{name}: ROC of templates"
    return Curve(
        title, "false accept rate", "true accept rate", far, tar, log_x=True, low=low, high=high
    )


def _histogram(name: str, scores_P: NDArray[np.floating], same_P: NDArray[np.bool_]) -> Histogram:
    """Of each kind of pair as many scores, evenly spread over the sorted ones: genuine pairs are
    one in eight hundred, and could not be seen beside the others."""
    groups = {"same subject": scores_P[same_P], "different": scores_P[~same_P]}
    shown = {}
    for kind, scores in groups.items():
        count = min(len(scores), _SHOWN_SCORES)
        shown[kind] = np.sort(scores)[np.linspace(0, len(scores) - 1, count).astype(np.int64)]
    return Histogram(
        f"{name}: scores of pairs of templates",
        "cosine of the pair",
        f"pairs, of {_SHOWN_SCORES:,} or all of each kind",
        shown,
    )
