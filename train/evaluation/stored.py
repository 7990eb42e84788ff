"""Results as `results.json` keeps them: everything that a page or a plot shows of them, without
the raw scores."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from manyfaces.train.evaluation.result import (
    Curve,
    Histogram,
    Quantity,
    Result,
    Table,
    finite,
    metric,
)

MOST_POINTS = 500
"""Points of a line that are kept."""
NUM_BINS = 40

StoredTable = dict[str, float | dict[str, float | None] | None]


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StoredLine(_Stored):
    """The points of a line in a plot."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    """The band of uncertainty at each x; empty where there is none."""
    high: tuple[float, ...] = ()


class StoredCurve(StoredLine):
    """A plot of one line, or of several."""

    title: str
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    lines: dict[str, StoredLine] = {}
    """Further lines by their names."""


class StoredHistogram(_Stored):
    """How many values of each group lie between two edges."""

    title: str
    x_label: str
    y_label: str
    edges: tuple[float, ...]
    """[bins + 1]; empty where there are no values."""
    counts: dict[str, tuple[int, ...]]
    """By the name of the group: [bins]."""
    mark: float | None = None


class StoredExample(_Stored):
    """Some images, by their files in the folder of the report."""

    images: tuple[str, ...]
    label: str
    score: float | None = None


class StoredResult(_Stored):
    """A `Result` without raw values."""

    name: str
    source: str = ""
    quantities: tuple[Quantity, ...]
    scalars: dict[str, float | None]
    counts: dict[str, int] = {}
    deviations: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float]] = {}
    curves: dict[str, StoredCurve] = {}
    histograms: dict[str, StoredHistogram] = {}
    tables: dict[str, StoredTable] = {}
    examples: dict[str, tuple[StoredExample, ...]] = {}

    @classmethod
    def of(
        cls, result: Result, examples: Mapping[str, tuple[StoredExample, ...]]
    ) -> "StoredResult":
        """The result with these in place of its examples, whose images are files now."""
        return cls(
            name=result.name,
            source=result.source,
            quantities=tuple(result.quantities),
            scalars={q.name: finite(result.scalars[q.name]) for q in result.quantities},
            counts={name: int(count) for name, count in result.counts.items()},
            deviations={name: finite(value) for name, value in result.deviations.items()},
            intervals={
                name: (float(low), float(high))
                for name, (low, high) in result.intervals.items()
                if math.isfinite(low) and math.isfinite(high)
            },
            curves={name: _stored_curve(curve) for name, curve in result.curves.items()},
            histograms={name: _stored_histogram(each) for name, each in result.histograms.items()},
            tables={name: _stored_table(table) for name, table in result.tables.items()},
            examples=dict(examples),
        )

    @property
    def headline(self) -> Quantity:
        """The quantity that stands for the result where there is space for one number only."""
        return self.quantities[0]

    def metrics(self) -> dict[str, float]:
        """As those of the `Result`."""
        known = {metric(self.name, each): self.scalars.get(each.name) for each in self.quantities}
        return {name: value for name, value in known.items() if value is not None}

    def summary(self) -> dict[str, Any]:
        """What `evaluation.json` has of it: counts, scalars with their deviations and intervals,
        tables."""
        kept: dict[str, Any] = dict(self.counts)
        for quantity in self.quantities:
            name = quantity.name
            kept[name] = self.scalars.get(name)
            if name in self.deviations:
                kept[f"{name}_std"] = self.deviations[name]
            if name in self.intervals:
                kept[f"{name}_interval"] = list(self.intervals[name])
        return kept | self.tables


class StoredReport(_Stored):
    """What `results.json` holds: the results of one step, each of another name."""

    format: Literal[1] = 1
    step: int
    results: tuple[StoredResult, ...]


def _stored_curve(curve: Curve) -> StoredCurve:
    logs = curve.log_x, curve.log_y
    return StoredCurve(
        title=curve.title,
        x_label=curve.x_label,
        y_label=curve.y_label,
        log_x=curve.log_x,
        log_y=curve.log_y,
        lines={name: StoredLine(**_points(x, y, *logs)) for name, (x, y) in curve.lines.items()},
        **_points(curve.x, curve.y, *logs, curve.low, curve.high),
    )


def _points(
    x: ArrayLike,
    y: ArrayLike,
    log_x: bool,
    log_y: bool,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> dict[str, tuple[float, ...]]:
    """The fields of a line: the points at which all is finite. Where they are many they are thinned
    out, and what is kept lies evenly along the line as it is drawn."""
    columns = [np.asarray(each, np.float64) for each in (x, y)]
    if low is not None and high is not None:
        columns += [np.asarray(low, np.float64), np.asarray(high, np.float64)]
    points_KN = np.stack(columns)
    points_KN = points_KN[:, np.isfinite(points_KN).all(0)]
    if points_KN.shape[1] > MOST_POINTS:
        points_KN = points_KN[:, _kept(points_KN[0], points_KN[1], log_x, log_y)]
    rows = map(tuple, points_KN.tolist())
    return dict(zip(("x", "y", "low", "high"), rows, strict=False))


def _kept(
    x_N: NDArray[np.float64], y_N: NDArray[np.float64], log_x: bool, log_y: bool
) -> NDArray[np.int64]:
    """Which points of a line are kept: the first, the last, and such as lie evenly along it."""
    steps = np.hypot(*(np.diff(_drawn(each, log)) for each, log in ((x_N, log_x), (y_N, log_y))))
    along_N = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, along_N[-1], MOST_POINTS)
    kept = np.unique(np.searchsorted(along_N, wanted, side="left").clip(max=len(x_N) - 1))
    kept[0], kept[-1] = 0, len(x_N) - 1
    return kept


def _drawn(values_N: NDArray[np.float64], log: bool) -> NDArray[np.float64]:
    """Where in the plot, from 0 to 1, values stand."""
    if log:
        positive = values_N[values_N > 0]
        values_N = np.log10(values_N.clip(positive.min() if len(positive) else 1.0))
    span = float(np.ptp(values_N))
    return (values_N - values_N.min()) / span if span else np.zeros(len(values_N))


def _stored_histogram(histogram: Histogram) -> StoredHistogram:
    known = {
        name: values[np.isfinite(values)]
        for name, values in ((n, np.asarray(v)) for n, v in histogram.values.items())
    }
    filled = [values for values in known.values() if len(values)]
    edges = np.empty(0)
    if filled:
        low, high = min(v.min() for v in filled), max(v.max() for v in filled)
        edges = np.histogram_bin_edges([], NUM_BINS, (float(low), float(high)))
    counts = {
        name: tuple(np.histogram(values, edges)[0].tolist() if len(edges) else ())
        for name, values in known.items()
    }
    return StoredHistogram(
        title=histogram.title,
        x_label=histogram.x_label,
        y_label=histogram.y_label,
        edges=tuple(edges.tolist()),
        counts=counts,
        mark=finite(histogram.mark),
    )


def _stored_table(table: Table) -> StoredTable:
    return {row: _cells(cells) for row, cells in table.items()}


def _cells(
    cells: float | Mapping[str, float | None] | None,
) -> float | dict[str, float | None] | None:
    if isinstance(cells, Mapping):
        return {column: finite(value) for column, value in cells.items()}
    return finite(cells)
