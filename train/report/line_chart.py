"""Charts of lines: training curves, ROC, DET, error against rejected share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from manyfaces.train.report.drawing import Drawing, Frame, Key, Numbers, Row, Rule, stretched
from manyfaces.train.report.scales import number_text, scale_over
from manyfaces.train.report.svg import (
    Element,
    Points,
    add,
    marker,
    markup,
    path,
    percent,
    style_class,
)
from manyfaces.train.report.thinning import thinned

_MARKED = 24
"""Up to so many points a line shows each of them."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x, with an interval of each y where it is known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    """Number of its colour, dash and points."""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class LineChart:
    """Lines over one pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    form_x: str = ""
    form_y: str = ""
    """Formats of the numbers, as `format` takes them; one that ends with `%` is also the axis's."""
    rules: Sequence[Rule] = field(default_factory=tuple)
    note: str = ""


def draw_lines(chart: LineChart) -> Drawing:
    """The chart with the points that its axes can show; a line of more than a few hundred has its
    extremes and what stands for the rest."""
    lines = [_shown(line, chart) for line in chart.lines]
    lines = [line for line in lines if len(line.x)]
    heights = [list(line.y) for line in lines]
    heights += [list(band) for line in lines for band in (line.low, line.high) if band is not None]
    frame = Frame(
        scale_over((x for line in lines for x in line.x), log=chart.log_x),
        scale_over((y for each in heights for y in each), log=chart.log_y, round_to=5),
        chart.form_x,
        chart.form_y,
        chart.rules,
    )
    root, margin_ch = frame.begin()
    paths = stretched(root)
    for line in lines:
        _band(paths, frame, line)
    for line in lines:
        _line(root, paths, frame, line, chart)
    keys = [Key(line.name, line.style, "marked" if _is_marked(line) else "line") for line in lines]
    return Drawing(
        chart.title,
        chart.x_label,
        chart.y_label,
        markup(root),
        _numbers(frame, lines, chart),
        keys if len(keys) > 1 else (),
        chart.note,
        margin_ch=margin_ch,
    )


def _shown(line: Line, chart: LineChart) -> Line:
    """The points that the axes can show, and not too many of them."""
    columns = [np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)]
    has_band = line.low is not None and line.high is not None
    if line.low is not None and line.high is not None:
        columns += [np.asarray(line.low, np.float64), np.asarray(line.high, np.float64)]
    good_N = np.isfinite(columns).all(0)
    good_N &= (columns[0] > 0) | (not chart.log_x)
    good_N &= (columns[1] > 0) | (not chart.log_y)
    columns = [column[good_N] for column in columns]
    if chart.log_y and has_band and good_N.any():
        # An interval that reaches zero ends at the bottom of the axis.
        columns[2:] = [np.maximum(column, columns[1].min()) for column in columns[2:]]
    kept = thinned(columns[1])
    x, y, *band = (column[kept].tolist() for column in columns)
    low, high = band if has_band else (None, None)
    return Line(line.name, x, y, line.style, low, high)


def _is_marked(line: Line) -> bool:
    return len(line.x) <= _MARKED


def _band(paths: Element, frame: Frame, line: Line) -> None:
    if line.low is None or line.high is None:
        return
    above = _places(frame, line.x, line.high)
    below = list(_places(frame, line.x, line.low))
    data = path([*above, *reversed(below)], closed=True)
    add(paths, "path", class_=f"band {style_class(line.style)}", d=data)


def _line(root: Element, paths: Element, frame: Frame, line: Line, chart: LineChart) -> None:
    name = style_class(line.style)
    add(paths, "path", class_=f"line {name}", d=path(_places(frame, line.x, line.y)))
    if not _is_marked(line):
        return
    group = add(root, "g", class_=f"points {name}")
    for x, y in zip(line.x, line.y, strict=True):
        left, up = frame.point(x, y)
        point = add(group, "use", href=marker(line.style), x=percent(left), y=percent(1 - up))
        told = f"{chart.x_label} {number_text(x, chart.form_x)}: {number_text(y, chart.form_y)}"
        add(point, "title", f"{line.name}, {told}" if line.name else told)


def _places(frame: Frame, x: Sequence[float], y: Sequence[float]) -> Points:
    return [frame.point(*each) for each in zip(x, y, strict=True)]


def _numbers(frame: Frame, lines: Sequence[Line], chart: LineChart) -> Numbers:
    """A row for each x of any line."""
    cells = [_cells(line, chart) for line in lines]
    columns = [chart.x_label, *(line.name or chart.y_label for line in lines)]
    rows = [
        Row(
            [number_text(x, chart.form_x), *(column.get(x, "") for column in cells)],
            frame.x.place(x),
        )
        for x in _union(line.x for line in lines)
    ]
    return Numbers(columns, rows)


def _cells(line: Line, chart: LineChart) -> dict[float, str]:
    """The text of each y, by its x; of several at one x the last."""
    texts = [number_text(y, chart.form_y) for y in line.y]
    if line.low is not None and line.high is not None:
        ends = zip(line.low, line.high, strict=True)
        told = [
            f"{number_text(a, chart.form_y)} to {number_text(b, chart.form_y)}" for a, b in ends
        ]
        texts = [f"{text} ({band})" for text, band in zip(texts, told, strict=True)]
    return dict(zip(line.x, texts, strict=True))


def _union(columns: Iterable[Sequence[float]]) -> list[float]:
    return sorted({x for column in columns for x in column})
