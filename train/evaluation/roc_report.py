"""A ROC as results have it: quantities, a curve with its band, and a table of TAR at FAR by two
definitions."""

from collections.abc import Sequence

from manyfaces.train.evaluation.bootstrap import Interval, RocIntervals, band_at
from manyfaces.train.evaluation.result import Curve, Quantity
from manyfaces.train.evaluation.roc import FARS, Roc, auc, tar_at, tar_nearest

FEW, ONE_KIND = "too few pairs to tell", "one kind of pair only"


def tar_quantity(far: float, heading: str = "") -> Quantity:
    """TAR at this FAR, which is not exceeded."""
    return Quantity(_name(far), f"TAR at FAR ≤ {far:.0e}", heading, unknown=FEW)


def tar_scalars(curve: Roc, fars: Sequence[float] = FARS) -> dict[str, float | None]:
    """The values of the quantities `tar_quantity`."""
    found = {_name(far): tar_at(curve, far) for far in fars}
    return {name: None if each is None else each.tar for name, each in found.items()}


def named_intervals(known: RocIntervals) -> dict[str, Interval]:
    """The intervals of `auc`, `eer` and the quantities `tar_quantity`, by their names."""
    single = {"auc": known.auc, "eer": known.eer}
    return {name: each for name, each in single.items() if each is not None} | {
        _name(far): each for far, each in known.tar.items()
    }


def roc_curve(name: str, curve: Roc, known: RocIntervals) -> Curve:
    """The ROC with its band, for people; `name` is that of the result."""
    area = auc(curve)
    title = f"{name}: ROC" if area is None else f"{name}: ROC, AUC {area:.3f}"
    far_K = curve.far.clip(0.5 / max(curve.impostors, 1))  # a logarithmic axis has no place for 0
    low, high = band_at(known.band, far_K)
    labels = "false accept rate", "true accept rate"
    return Curve(title, *labels, far_K, curve.tar, log_x=True, low=low, high=high)


def tar_table(
    curve: Roc, known: RocIntervals, fars: Sequence[float] = FARS
) -> dict[str, dict[str, float | None]]:
    """A row for each FAR: the TAR at which it is not exceeded, with its interval, the FAR that is
    in fact had, the impostor pairs that are accepted and all there are, and the threshold; and the
    TAR at the nearest FAR, which may be higher, as InsightFace's eval_ijbc.py reports it."""
    table = {}
    for far in fars:
        at, nearest = tar_at(curve, far), tar_nearest(curve, far)
        low, high = known.tar.get(far, (None, None))
        table[f"{far:.0e}"] = {
            "tar": at.tar if at else None,
            "low": low,
            "high": high,
            "far": at.far if at else None,
            "false_accepts": at.false_accepts if at else None,
            "impostors": curve.impostors,
            "threshold": at.threshold if at else None,
            "nearest_tar": nearest.tar if nearest else None,
            "nearest_far": nearest.far if nearest else None,
        }
    return table


def _name(far: float) -> str:
    return f"tar_at_far_{far:.0e}"
