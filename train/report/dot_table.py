"""Values with their intervals as dots on one axis, a row of a table each: groups beside each
other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from manyfaces.train.report.scales import Scale, number_text, scale_over, tick_texts
from manyfaces.train.report.svg import add, element, marker, markup, percent, style_class

_TICKS = 4


@dataclass(frozen=True)
class Dot:
    """One value, and its interval where that is known."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DotRow:
    """A row as the page shows it."""

    label: str
    value: str
    interval: str
    svg: Markup


@dataclass(frozen=True)
class DotTable:
    """All rows, and the axis below them."""

    title: str
    heading: str
    """What the values are."""
    rows: Sequence[DotRow]
    axis: Markup
    has_intervals: bool
    note: str = ""


def dot_table(
    title: str, heading: str, dots: Sequence[Dot], form: str = "", note: str = ""
) -> DotTable:
    """The table of these values, all on the axis that fits them and their intervals."""
    ends = [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
    scale = scale_over(ends, round_to=_TICKS)
    form = form or f".{_decimals(ends)}f"
    rows = [_row(dot, scale, form) for dot in dots]
    has_intervals = any(row.interval for row in rows)
    return DotTable(title, heading, rows, _axis(scale, form), has_intervals, note)


def _decimals(values: Sequence[float]) -> int:
    """Decimals that show two digits of the smallest of the values, six at most."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    return min(max(1 - math.floor(math.log10(smallest)), 0), 6)


def _row(dot: Dot, scale: Scale, form: str) -> DotRow:
    root = element("svg", class_="dot-plot s0", aria_hidden="true")
    for tick in scale.ticks(_TICKS):
        x = percent(scale.place(tick))
        add(root, "line", class_="grid", x1=x, x2=x, y1="0", y2="100%")
    interval = ""
    if dot.low is not None and dot.high is not None:
        left, right = percent(scale.place(dot.low)), percent(scale.place(dot.high))
        add(root, "line", class_="whisker", x1=left, x2=right, y1="50%", y2="50%")
        interval = f"{number_text(dot.low, form)} to {number_text(dot.high, form)}"
    if dot.value is None:
        return DotRow(dot.label, "not known", interval, markup(root))
    points = add(root, "g", class_=f"points {style_class(0)}")
    add(points, "use", href=marker(0), x=percent(scale.place(dot.value)), y="50%")
    return DotRow(dot.label, number_text(dot.value, form), interval, markup(root))


def _axis(scale: Scale, form: str) -> Markup:
    root = element("svg", class_="dot-axis", aria_hidden="true")
    ticks = scale.ticks(_TICKS)
    for tick, text in zip(ticks, tick_texts(ticks, form=form), strict=True):
        add(root, "text", text, class_="tick below", x=percent(scale.place(tick)), y="1em")
    return markup(root)
