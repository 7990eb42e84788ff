"""Plots of results, and of a run's metrics over its time, as PNG files."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyfaces.train.evaluation.result import (
    Curve,
    Histogram,
    QuantitiesByName,
    Result,
    metric,
)

_LOSS = "train/loss"


def plot_result(result: Result, folder: Path) -> list[Path]:
    """Draw each curve and each histogram, to `CURVE-NAME.png`; returns the files."""
    return [
        *(
            _plot_curve(curve, folder / f"{kind}-{result.name}.png")
            for kind, curve in result.curves.items()
        ),
        *(
            _plot_histogram(histogram, folder / f"{kind}-{result.name}.png")
            for kind, histogram in result.histograms.items()
        ),
    ]


def plot_metrics(
    rows: Sequence[Mapping[str, float]], quantities: QuantitiesByName, folder: Path
) -> list[Path]:
    """Draw loss and headlines of a run over minutes of training, to `loss.png` and a file for each
    headline; returns the files. `rows` are those of `metrics.jsonl`."""
    files = []
    if any(_LOSS in row for row in rows):
        files.append(_plot_over_time(rows, [_LOSS], "loss", "", folder / "loss.png"))
    labels: dict[str, str] = {}
    drawn: dict[str, list[str]] = {}
    for name, (headline, *_) in quantities.items():
        if any(metric(name, headline) in row for row in rows):
            labels.setdefault(headline.name, headline.label)
            drawn.setdefault(headline.name, []).append(metric(name, headline))
    for headline_name, names in drawn.items():
        file = folder / f"{headline_name}.png"
        files.append(_plot_over_time(rows, names, labels[headline_name], ".", file))
    return files


def plot_lines(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    legend: str,
    x_label: str,
    y_label: str,
    path: Path,
) -> Path:
    """Draw each line through its points (x, y); returns the file. `legend` is what the lines' names
    are values of."""
    figure, axes = _figure(y_label, x_label, y_label)
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=".")
    if lines:
        axes.legend(title=legend)
    return _save(figure, path)


def _plot_curve(curve: Curve, path: Path) -> Path:
    figure, axes = _figure(curve.title, curve.x_label, curve.y_label)
    axes.plot(curve.x, curve.y)
    if curve.log_x:
        axes.set_xscale("log")
    return _save(figure, path)


def _plot_histogram(histogram: Histogram, path: Path) -> Path:
    figure, axes = _figure(histogram.title, histogram.x_label, histogram.y_label)
    axes.hist(
        [values[np.isfinite(values)] for values in histogram.values.values()],
        bins=40,
        label=list(histogram.values),
        histtype="stepfilled",
        alpha=0.6,
    )
    axes.legend()
    return _save(figure, path)


def _plot_over_time(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], label: str, marker: str, path: Path
) -> Path:
    figure, axes = _figure(label, "minutes of training", label)
    for name in names:
        known = [row for row in rows if name in row]
        minutes = [row["minutes"] for row in known]
        axes.plot(minutes, [row[name] for row in known], label=name, marker=marker)
    axes.legend()
    return _save(figure, path)


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two threads may draw the same, and a third one may send what stands there.
    unfinished = path.with_name(f".{path.name}.{threading.get_ident()}")
    figure.savefig(unfinished, dpi=120, format="png")
    unfinished.replace(path)
    return path
