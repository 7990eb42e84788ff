"""Charts of the report: where points, bands and bars stand, and what their tables say."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from manyfaces.train.report.dot_table import Dot, dot_table
from manyfaces.train.report.drawing import Drawing, Rule
from manyfaces.train.report.histogram_chart import HistogramChart, draw_histogram
from manyfaces.train.report.line_chart import Line, LineChart, draw_lines


def elements(drawing: Drawing, kind: str) -> list[ElementTree.Element]:
    """The elements of this class in the chart."""
    root = ElementTree.fromstring(drawing.svg)
    return [each for each in root.iter() if kind in each.get("class", "").split()]


def corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of a path, in thousandths; y goes down."""
    pairs = re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d", ""))
    return [(float(x), float(y)) for x, y in pairs]


def chart(*lines: Line, **options: bool) -> Drawing:
    return draw_lines(LineChart("Loss", "step", "loss", lines, **options))  # type: ignore[arg-type]


def test_points_stand_where_their_values_say() -> None:
    drawing = chart(Line("a", [0, 5, 10], [0, 1, 4]))
    (path,) = elements(drawing, "line")
    assert corners(path) == [(0, 1000), (500, 750), (1000, 0)]
    points = [each for each in ElementTree.fromstring(drawing.svg).iter() if each.tag == "use"]
    assert [(p.get("x"), p.get("y")) for p in points] == [
        ("0%", "100%"),
        ("50%", "75%"),
        ("100%", "0%"),
    ]
    assert [row.place for row in drawing.numbers.rows] == [0, 0.5, 1]


def test_logarithmic_axes_leave_out_what_they_cannot_show() -> None:
    drawing = chart(Line("a", [0, 1, 10, 100], [1, 0, 0.1, 10]), log_x=True, log_y=True)
    assert corners(elements(drawing, "line")[0]) == [(0, 1000), (1000, 0)]
    assert [list(row.cells) for row in drawing.numbers.rows] == [["10", "0.1"], ["100", "10"]]


def test_a_band_that_reaches_zero_ends_at_the_bottom_of_a_logarithmic_axis() -> None:
    line = Line("a", [1, 2], [0.1, 1], low=[0.0, 0.0], high=[0.0, 1.0])
    band = corners(elements(chart(line, log_y=True), "band")[0])
    assert {y for _, y in band} == {0, 1000}


def test_a_line_of_no_finite_point_is_left_out() -> None:
    drawing = chart(Line("a", [1, 2], [np.nan, np.inf]), Line("b", [1, 2], [3, 4]))
    assert len(elements(drawing, "line")) == 1
    assert drawing.numbers.columns == ["step", "b"]
    assert not chart(Line("a", [], [])).numbers.rows


def test_lines_of_other_steps_share_one_table() -> None:
    banded = Line("b", [2, 3], [7.5, 8], low=[7, 7], high=[9, 9])
    drawing = chart(Line("a", [1, 2], [10, 20]), banded)
    assert [list(row.cells) for row in drawing.numbers.rows] == [
        ["1", "10", ""],
        ["2", "20", "7.5 (7 to 9)"],
        ["3", "", "8 (7 to 9)"],
    ]
    assert [key.name for key in drawing.keys] == ["a", "b"]


def test_a_histogram_has_its_counts_as_heights_and_its_mark() -> None:
    made = HistogramChart(
        "Scores", "cosine", "pairs", [0, 1, 2], {"x": [4, 2]}, {"x": 0}, Rule(1.5, "threshold")
    )
    drawing = draw_histogram(made)
    outline = corners(elements(drawing, "line")[0])
    assert outline == [(0, 1000), (0, 0), (500, 0), (500, 500), (1000, 500), (1000, 1000)]
    assert [list(row.cells) for row in drawing.numbers.rows] == [["0 to 1", "4"], ["1 to 2", "2"]]
    (rule,) = elements(drawing, "rule")
    line = rule.find("line")
    assert line is not None
    assert line.get("x1") == "75%"


def test_dots_share_an_axis_and_have_the_decimals_of_the_smallest() -> None:
    table = dot_table("Groups", "FMR", [Dot("A", 0.002, 0.001, 0.004), Dot("B", None)])
    assert [(row.value, row.interval) for row in table.rows] == [
        ("0.0020", "0.0010 to 0.0040"),
        ("not known", ""),
    ]
    whisker = re.search(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', table.rows[0].svg)
    dot = re.search(r'<use href="#m0" x="([\d.]+)%"', table.rows[0].svg)
    assert whisker is not None
    assert dot is not None
    low, high, middle = float(whisker[1]), float(whisker[2]), float(dot[1])
    assert (middle - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)
