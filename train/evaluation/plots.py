"""Plots of results, and of a run's metrics over its steps, each as PNG and SVG."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from manyfaces.train.evaluation.result import QuantitiesByName, metric
from manyfaces.train.evaluation.stored import StoredCurve, StoredHistogram, StoredResult

_LOSS = "train/loss"
_DPI = 240
_FORMATS = ("png", "svg")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""
_DASHES = ("-", "--", "-.", ":")


def plot_result(result: StoredResult, folder: Path, newer_than: int = 0) -> list[Path]:
    """Draw each curve and each histogram, to `CURVE-NAME.png` and `.svg`, but for those whose files
    are newer than that (nanoseconds since 1970, 0 draws all); returns the files of all."""
    drawn: list[tuple[str, Callable[[Path], list[Path]]]] = [
        *((kind, partial(_plot_curve, curve)) for kind, curve in result.curves.items()),
        *((kind, partial(_plot_histogram, each)) for kind, each in result.histograms.items()),
    ]
    files = []
    for kind, draw in drawn:
        path = folder / f"{file_stem(kind, result.name)}.png"
        known = [path.with_suffix(f".{ending}") for ending in _FORMATS]
        is_new = newer_than and all(
            file.exists() and file.stat().st_mtime_ns >= newer_than for file in known
        )
        files += known if is_new else draw(path)
    return files


def file_stem(*parts: object) -> str:
    """The beginning of the name of a file that is told by these: `roc-lfw`."""
    return "-".join(map(str, parts)).replace("/", "_").replace(" ", "-")


def plot_metrics(
    rows: Sequence[Mapping[str, float]], quantities: QuantitiesByName, folder: Path
) -> list[Path]:
    """Draw loss and headlines of a run over its steps, to `loss.png` and a file for each headline,
    and the same as SVG; returns the files. `rows` are those of `metrics.jsonl`."""
    files: list[Path] = []
    if any(_LOSS in row for row in rows):
        files += _plot_over_steps(rows, [_LOSS], "loss", "", folder / "loss.png")
    labels: dict[str, str] = {}
    drawn: dict[str, list[str]] = {}
    for name, (headline, *_) in quantities.items():
        if any(metric(name, headline) in row for row in rows):
            labels.setdefault(headline.name, headline.label)
            drawn.setdefault(headline.name, []).append(metric(name, headline))
    for headline_name, names in drawn.items():
        file = folder / f"{headline_name}.png"
        files += _plot_over_steps(rows, names, labels[headline_name], ".", file)
    return files


def plot_lines(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    legend: str,
    x_label: str,
    y_label: str,
    path: Path,
) -> Path:
    """Draw each line through its points (x, y), as PNG and SVG; returns the PNG. `legend` is what
    the lines' names are values of."""
    figure, axes = _figure(y_label, x_label, y_label)
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=".")
    if lines:
        axes.legend(title=legend)
    return _save(figure, path)[0]


def _plot_curve(curve: StoredCurve, path: Path) -> list[Path]:
    figure, axes = _figure(curve.title, curve.x_label, curve.y_label)
    axes.plot(curve.x, curve.y, label="all" if curve.lines else None)
    if curve.low:
        axes.fill_between(curve.x, curve.low, curve.high, alpha=0.2, linewidth=0)
    for number, (name, line) in enumerate(curve.lines.items(), 1):
        axes.plot(line.x, line.y, label=name, linestyle=_DASHES[number % len(_DASHES)])
    if curve.lines:
        axes.legend()
    if curve.log_x:
        axes.set_xscale("log")
    if curve.log_y:
        axes.set_yscale("log")
    return _save(figure, path)


def _plot_histogram(histogram: StoredHistogram, path: Path) -> list[Path]:
    figure, axes = _figure(histogram.title, histogram.x_label, histogram.y_label)
    for name, counts in histogram.counts.items():
        if counts:
            axes.stairs(counts, histogram.edges, label=name, fill=True, alpha=0.6)
    if histogram.mark is not None:
        axes.axvline(histogram.mark, label=f"{histogram.mark:.3f}", color="black", linestyle="--")
    if histogram.edges:
        axes.legend()
    return _save(figure, path)


def _plot_over_steps(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], label: str, marker: str, path: Path
) -> list[Path]:
    figure, axes = _figure(label, "step", label)
    for name in names:
        # A row that was measured again counts, and a checkpoint may be evaluated at any time.
        known = {row["step"]: row[name] for row in rows if name in row}
        steps = sorted(known)
        axes.plot(steps, [known[step] for step in steps], label=name, marker=marker)
    axes.legend()
    return _save(figure, path)


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.set_prop_cycle(color=_COLOURS)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for ending in _FORMATS:
        file = path.with_suffix(f".{ending}")
        # Two threads may draw the same, and a third one may send what stands there.
        unfinished = file.with_name(f".{file.name}.{threading.get_ident()}")
        figure.savefig(unfinished, dpi=_DPI, format=ending)
        files.append(unfinished.replace(file))
    return files
