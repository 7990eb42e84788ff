"""A ROC as results have it: quantities, a curve with its band, and a table of TAR at FAR by two
definitions."""

from collections.abc import Mapping, Sequence

from manyfaces.train.evaluation.bootstrap import Interval, RocIntervals, band_at
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.result import Curve, Quantity

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEW, ONE_KIND = "too few pairs to tell", "one kind of pair only"


def rate_quantities() -> Sequence[Quantity]:
    """AUC, EER and TAR at each of `FARS`, which is not exceeded."""
    headings = {1e-2: "TAR 1e-2", 1e-3: "TAR 1e-3"}
    return (
        Quantity("auc", "AUC", "AUC", format=".4f", unknown=ONE_KIND),
        Quantity("eer", "EER", unknown=ONE_KIND),
        *(
            Quantity(
                _name(far),
                f"TAR at FAR {_word(far)}, not above",
                headings.get(far, ""),
                unknown=FEW,
            )
            for far in FARS
        ),
    )


def rate_scalars(roc: Roc) -> dict[str, float | None]:
    """The values of `rate_quantities`."""
    scalars: dict[str, float | None] = {_name(far): None for far in FARS}
    if not roc.has_both:
        return {"auc": None, "eer": None} | scalars
    points = {far: roc.conservative(far) for far in FARS}
    known = {_name(far): point.tar for far, point in points.items() if point is not None}
    return {"auc": roc.auc, "eer": roc.eer} | scalars | known


def rate_intervals(known: RocIntervals) -> dict[str, Interval]:
    """The intervals of `rate_quantities` that are known."""
    single = {"auc": known.auc, "eer": known.eer}
    return {name: each for name, each in single.items() if each is not None} | {
        _name(far): each for far, each in known.tar.items()
    }


def roc_curve(name: str, roc: Roc, known: RocIntervals) -> Curve:
    """The ROC with its band, for people; `name` is that of the result."""
    title = f"{name}: ROC, AUC {roc.auc:.3f}" if roc.has_both else f"{name}: ROC"
    far_T = roc.far.clip(0.5 / max(roc.num_impostors, 1))  # a logarithmic axis has no place for 0
    low, high = band_at(known.band, far_T)
    labels = "false accept rate", "true accept rate"
    return Curve(title, *labels, far_T, roc.tar, log_x=True, low=low, high=high)


def tar_table(roc: Roc, known: RocIntervals) -> Mapping[str, Mapping[str, float | None]]:
    """A row for each of `FARS`: the highest TAR with a FAR that is not above it, and that at the
    nearest FAR, which may be above, as InsightFace's eval_ijbc.py has it; with the FAR that each
    has in fact. Empty where there is one kind of pair only."""
    return {_word(far): _row(roc, known, far) for far in FARS if roc.has_both}


def _row(roc: Roc, known: RocIntervals, far: float) -> dict[str, float | None]:
    below, nearest = roc.conservative(far), roc.nearest(far)
    low, high = known.tar.get(far, (None, None))
    return {
        "tar_not_above": below and below.tar,
        "tar_not_above_low": low,
        "tar_not_above_high": high,
        "far": below and below.far,
        "false_accepts": below and below.false_accepts,
        "threshold": below and below.threshold,
        "tar_nearest": nearest.tar,
        "far_nearest": nearest.far,
        "impostors": roc.num_impostors,
    }


def _name(far: float) -> str:
    return f"tar_at_far_{far:.0e}"


def _word(far: float) -> str:
    return f"{far:.0e}".replace("e-0", "e-")
