"""Points in a plane whose axes mean nothing, such as a map of embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.report.drawing import Drawing, Key, Numbers
from manyfaces.train.report.scales import scale_over
from manyfaces.train.report.svg import add, element, marker, markup, percent, style_class

_MARGIN = 0.04


@dataclass(frozen=True)
class ScatterChart:
    """Groups of points, each with a colour and a shape of its own."""

    title: str
    points: Mapping[str, NDArray[np.floating]]
    """Of each group the places, [N, 2]."""
    numbers: Numbers
    """What is told of the groups to whoever does not see the chart."""
    note: str = ""


def draw_scatter(chart: ScatterChart) -> Drawing:
    """The chart, as wide and as high as its points, without axes."""
    root = element("svg", class_="chart framed", aria_hidden="true")
    everything = np.concatenate([np.zeros((0, 2)), *chart.points.values()])
    scales = [scale_over(everything[:, axis].tolist()) for axis in (0, 1)]
    for style, (name, places) in enumerate(chart.points.items()):
        group = add(root, "g", class_=f"points {style_class(style)}")
        add(group, "title", name)
        for x, y in places.tolist():
            left, up = (
                _MARGIN + (1 - 2 * _MARGIN) * scale.place(value)
                for scale, value in zip(scales, (x, y), strict=True)
            )
            add(group, "use", href=marker(style), x=percent(left), y=percent(1 - up))
    keys = [Key(name, style, "point") for style, name in enumerate(chart.points)]
    labels = _names(list(chart.points))
    return Drawing(
        chart.title,
        "first direction of the map",
        labels,
        markup(root),
        chart.numbers,
        keys,
        chart.note,
        kind="map",
        margin_ch=0,
        height_rem=26.0,
    )


def _names(names: Sequence[str]) -> str:
    return f"second direction of the map, {len(names)} groups"
