"""Charts of how often values occur."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manyfaces.train.report.drawing import Drawing, Frame, Key, Numbers, Row, Rule, stretched
from manyfaces.train.report.scales import number_text, scale_over
from manyfaces.train.report.svg import add, markup, path, style_class


@dataclass(frozen=True)
class HistogramChart:
    """Counts of values between edges, for one or several groups of values."""

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    """One more than there are counts, ascending."""
    counts: Mapping[str, Sequence[float]]
    """By the name of the group; "" where there is only one."""
    styles: Mapping[str, int]
    rule: Rule | None = None
    note: str = ""


def draw_histogram(chart: HistogramChart) -> Drawing:
    """The chart: an outline with a tinted area for each group."""
    heights = [count for counts in chart.counts.values() for count in counts]
    rules = (chart.rule,) if chart.rule is not None else ()
    frame = Frame(
        scale_over([*chart.edges, *(rule.x for rule in rules)]),
        scale_over([0, *heights], round_to=5),
        rules=rules,
    )
    root, margin_ch = frame.begin()
    paths = stretched(root)
    for name, counts in chart.counts.items():
        look = style_class(chart.styles[name])
        points = [frame.point(x, y) for x, y in _outline(chart.edges, counts)]
        add(paths, "path", class_=f"band {look}", d=path(points, closed=True))
        add(paths, "path", class_=f"line {look}", d=path(points))
    keys = [Key(name, chart.styles[name], "area") for name in chart.counts]
    return Drawing(
        chart.title,
        chart.x_label,
        chart.y_label,
        markup(root),
        _numbers(frame, chart),
        keys if len(keys) > 1 else (),
        chart.note,
        margin_ch=margin_ch,
    )


def _outline(edges: Sequence[float], counts: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of the steps, from the axis to the axis."""
    corners = [(edges[0], 0.0)]
    for number, count in enumerate(counts):
        corners += [(edges[number], count), (edges[number + 1], count)]
    return [*corners, (edges[-1], 0.0)]


def _numbers(frame: Frame, chart: HistogramChart) -> Numbers:
    rows = []
    for number, (low, high) in enumerate(zip(chart.edges[:-1], chart.edges[1:], strict=True)):
        span = f"{number_text(low)} to {number_text(high)}"
        counts = [number_text(counts[number]) for counts in chart.counts.values()]
        rows.append(Row([span, *counts], frame.x.place((low + high) / 2)))
    return Numbers([chart.x_label, *(name or chart.y_label for name in chart.counts)], rows)
