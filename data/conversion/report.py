"""What a conversion did: `report.json` and `histogram.png` beside the dataset, and the same in a
few lines for people."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from manyfaces.configs.files import write_atomic
from manyfaces.configs.parsed import parsed
from manyfaces.data.dataset.write import DROPPED, Written

REPORT, HISTOGRAM = "report.json", "histogram.png"
_NAMED = 20
"""How many of the identities without an image are named."""


class _DroppedImages(BaseModel):
    images: int
    by_reason: dict[str, int]


class _Duplicates(BaseModel):
    images: int
    within_an_identity: int
    between_identities: int


class _Spread(BaseModel):
    min: int
    median: float
    mean: float
    max: int


class _Counted(BaseModel):
    count: int


class _Source(BaseModel):
    left_out: dict[str, int] = {}
    """Number of files that were not read, by the reason why."""


class _Report(BaseModel):
    """What is told to people of `report.json`."""

    sources: list[_Source] = []
    dropped: _DroppedImages
    duplicates: _Duplicates
    images_per_identity: _Spread
    identities_without_images: _Counted
    notes: list[str]


def write_report(
    out: Path,
    written: Written,
    identities: list[str],
    left_out: dict[str, int],
    facts: dict[str, Any],
) -> None:
    """Write both files. `left_out` counts the images that were not read, by the reason why; `facts`
    open the report (sources, options)."""
    count_C = np.bincount(written.identity_N, minlength=len(identities))
    count_of_used = count_C[count_C > 0]
    without = np.flatnonzero(count_C == 0)
    reasons = {**left_out, **dict(written.dropped.most_common())}
    edges = histogram_edges(int(count_of_used.max()))
    report = {
        **facts,
        "images": len(written.identity_N),
        "identities": len(identities),
        "bytes": written.bytes,
        "dropped": {"images": sum(reasons.values()), "by_reason": reasons},
        "identities_without_images": {
            "count": len(without),
            "first": [identities[i] for i in without[:_NAMED]],
        },
        "duplicates": duplicates(written.digest_N, written.identity_N),
        "images_per_identity": {
            "min": int(count_of_used.min()),
            "median": float(np.median(count_of_used)),
            "mean": round(float(count_of_used.mean()), 2),
            "max": int(count_of_used.max()),
        },
        "histogram": {
            "from": edges[:-1].tolist(),
            "identities": np.histogram(count_of_used, edges)[0].tolist(),
        },
    }
    histogram(count_of_used, out / HISTOGRAM)
    write_atomic(out / REPORT, json.dumps(report, indent=1) + "\n")


def duplicates(digest_N: NDArray[np.uint64], identity_N: NDArray[np.uint32]) -> dict[str, int]:
    """Count the images whose bytes another image has already, beyond the first: all of them, those
    in the same identity, and those in another one.

    Compared by 64 bits of a hash: among 50 million different images one pair is mistaken with a
    chance of 1 in 15,000.
    """
    order = np.lexsort((identity_N, digest_N))
    same = digest_N[order][1:] == digest_N[order][:-1]
    within = same & (identity_N[order][1:] == identity_N[order][:-1])
    return {
        "images": int(same.sum()),
        "within_an_identity": int(within.sum()),
        "between_identities": int((same & ~within).sum()),
    }


def histogram_edges(highest: int) -> NDArray[np.int64]:
    """Bin the counts 1 to `highest`: each has its own bin up to 40, above that there are about 40
    bins that widen with the count."""
    if highest <= 40:
        return np.arange(1, highest + 2)
    return np.unique(np.rint(np.geomspace(1, highest + 1, 41)).astype(np.int64))


def lines(out: Path) -> list[str]:
    """Read the report and tell it in a few lines. Raises `UserError` for one that is none."""
    body, remedy = (out / REPORT).read_bytes(), "remove it; the dataset is whole without it"
    report = parsed(_Report, body, str(out / REPORT), remedy)
    dropped, twice, spread = report.dropped, report.duplicates, report.images_per_identity
    reasons = [f"{count:,} {reason}" for reason, count in dropped.by_reason.items()]
    why = f": {'; '.join(reasons)} (see {out / DROPPED})" if reasons else ""
    found = [
        f"images per identity  {spread.min:,} to {spread.max:,}, median {spread.median:,g}, mean "
        f"{spread.mean:,}",
        f"dropped              {dropped.images:,} images{why}",
        *_left_out(out, report.sources),
        f"exact duplicates     {twice.images:,} images kept: {twice.within_an_identity:,} within "
        f"an identity, {twice.between_identities:,} between identities",
    ]
    if num_empty := report.identities_without_images.count:
        found.append(
            f"without images       {num_empty:,} identities: none of their images could be used; "
            "their class ids stay, unused"
        )
    return [*found, *report.notes, f"report               {out / REPORT}, {out / HISTOGRAM}"]


def _left_out(out: Path, sources: list[_Source]) -> list[str]:
    """One line for what the sources hold and have not given; none where they gave all."""
    counts = Counter[str]()
    for source in sources:
        counts.update(source.left_out)
    if not counts:
        return []
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return [f"left out             {counts.total():,} files: {reasons} (see {out / DROPPED})"]


def histogram(count_C: NDArray[np.int64], path: Path) -> None:
    """Draw how many identities have how many images (at least one each), as a PNG."""
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    edges = histogram_edges(int(count_C.max()))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        count_C,
        bins=(edges - 0.5).tolist(),
        color="#3b6ea5",
        edgecolor="white",
        linewidth=0.4,
        log=True,
    )
    if edges[-1] > 41:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(
        xlabel="images per identity",
        ylabel="identities",
        title=f"{count_C.sum():,} images, {len(count_C):,} identities",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
