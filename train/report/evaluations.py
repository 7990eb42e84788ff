"""Results of protocols as the page shows them: figures, curves, histograms, groups and pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.evaluation.stored import StoredCurve, StoredHistogram, StoredLine, StoredResult
from manyfaces.train.report.course import Listing
from manyfaces.train.report.dot_table import Dot, DotTable, dot_table
from manyfaces.train.report.drawing import Drawing, Rule
from manyfaces.train.report.examples import Shown, shown_examples
from manyfaces.train.report.histogram_chart import HistogramChart, draw_histogram
from manyfaces.train.report.line_chart import Line, LineChart, draw_lines
from manyfaces.train.report.run_data import RunData
from manyfaces.train.report.scales import number_text

_LOW, _HIGH = "_low", "_high"


@dataclass(frozen=True)
class Figure:
    """A number of a result, for people."""

    label: str
    value: str
    interval: str = ""
    deviation: str = ""

    @property
    def text(self) -> str:
        """All of it in a line."""
        interval = f"({self.interval})" if self.interval else ""
        return " ".join(part for part in (self.value, self.deviation, interval) if part)


@dataclass(frozen=True)
class ExampleKind:
    """A kind of examples: `hardest genuine pairs`."""

    title: str
    examples: Sequence[Shown]


@dataclass(frozen=True)
class Evaluated:
    """What the page shows of one protocol."""

    name: str
    about: str
    """The step, and what the result is about: `step 120; 600 pairs`."""
    figures: Sequence[Figure]
    charts: Sequence[Drawing]
    dots: Sequence[DotTable]
    tables: Mapping[str, Listing]
    examples: Sequence[ExampleKind]
    anchor: str


def evaluated(run: RunData) -> list[Evaluated]:
    """The newest result of each protocol of a run."""
    return [_evaluated(run, result) for result in run.results.values()]


def compared(runs: Sequence[RunData]) -> list[Evaluated]:
    """Curves of the protocols by which several runs were evaluated, laid over each other."""
    names = dict.fromkeys(name for run in runs for name in run.results)
    return [_compared(name, runs) for name in names]


def figures(result: StoredResult) -> list[Figure]:
    """The numbers of a result that are for people, its headline first."""
    shown = [each for each in result.quantities if each.heading] or list(result.quantities[:1])
    return [figure(result, quantity) for quantity in shown]


def figure(result: StoredResult, quantity: Quantity) -> Figure:
    """One number of a result, with the interval and the deviation that are known of it."""
    value, form = result.scalars.get(quantity.name), quantity.format
    interval, deviation = result.intervals.get(quantity.name), result.deviations.get(quantity.name)
    return Figure(
        quantity.label,
        quantity.unknown if value is None else format(value, form),
        "" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}",
        "" if deviation is None or value is None else f"± {deviation:{form}}",
    )


def _evaluated(run: RunData, result: StoredResult) -> Evaluated:
    charts = [_curve(curve) for curve in result.curves.values()]
    charts += [_histogram(each) for each in result.histograms.values() if each.edges]
    folder = run.result_folders[result.name]
    kinds_shown = [
        ExampleKind(_capital(title), shown_examples(examples, folder))
        for title, examples in result.examples.items()
    ]
    dots = [
        each
        for name, table in result.tables.items()
        for each in _dots(name, _rows(table), result.quantities)
    ]
    tables = {
        _capital(_spaced(name)): listing
        for name, table in result.tables.items()
        if (listing := _listing(_rows(table))).columns[1:]
    }
    counts = [f"{count:,} {name}" for name, count in result.counts.items()]
    about = "; ".join([f"step {run.result_steps[result.name]:,}", *counts])
    anchor = f"result-{list(run.results).index(result.name)}"
    return Evaluated(result.name, about, figures(result), charts, dots, tables, kinds_shown, anchor)


def _compared(name: str, runs: Sequence[RunData]) -> Evaluated:
    having = [run for run in runs if name in run.results]
    kinds = dict.fromkeys(kind for run in having for kind in run.results[name].curves)
    charts = []
    for kind in kinds:
        curves = {
            run.name: (runs.index(run), run.results[name].curves[kind])
            for run in having
            if kind in run.results[name].curves
        }
        first = next(iter(curves.values()))[1]
        lines = [_line(line, curve, style) for line, (style, curve) in curves.items()]
        charts.append(draw_lines(_chart(first, lines)))
    steps = ", ".join(f"{run.name} at step {run.result_steps[name]:,}" for run in having)
    anchor = f"result-{list(dict.fromkeys(n for run in runs for n in run.results)).index(name)}"
    return Evaluated(name, steps, [], charts, [], {}, [], anchor)


def _curve(curve: StoredCurve) -> Drawing:
    """A curve with the further lines that it has."""
    lines = [_line("all" if curve.lines else "", curve, 0)]
    lines += [
        _line(name, line, number) for number, (name, line) in enumerate(curve.lines.items(), 1)
    ]
    return draw_lines(_chart(curve, lines))


def _chart(curve: StoredCurve, lines: Sequence[Line]) -> LineChart:
    has_band = any(line.low is not None for line in lines)
    return LineChart(
        curve.title,
        curve.x_label,
        curve.y_label,
        lines,
        curve.log_x,
        curve.log_y,
        note="The tinted band is the 95 % interval." if has_band else "",
    )


def _line(name: str, line: StoredLine, style: int) -> Line:
    return Line(name, line.x, line.y, style, line.low or None, line.high or None)


def _histogram(histogram: StoredHistogram) -> Drawing:
    rule = None
    if histogram.mark is not None:
        rule = Rule(histogram.mark, f"threshold {number_text(histogram.mark, '.3f')}")
    styles = {group: number for number, group in enumerate(histogram.counts)}
    chart = HistogramChart(
        histogram.title,
        histogram.x_label,
        histogram.y_label,
        histogram.edges,
        histogram.counts,
        styles,
        rule,
    )
    return draw_histogram(chart)


_Rows = Mapping[str, Mapping[str, float | None]]


def _rows(table: Mapping[str, float | Mapping[str, float | None] | None]) -> _Rows:
    """The cells of each row by column; a row that has one value has it in column `value`."""
    return {
        row: cells if isinstance(cells, Mapping) else {"value": cells}
        for row, cells in table.items()
    }


def _columns(rows: _Rows) -> list[str]:
    return list(dict.fromkeys(column for cells in rows.values() for column in cells))


def _with_intervals(rows: _Rows) -> list[str]:
    """The columns of which the table has intervals, in columns `NAME_low` and `NAME_high`."""
    columns = _columns(rows)
    return [each for each in columns if {each + _LOW, each + _HIGH} <= {*columns}]


def _dots(name: str, rows: _Rows, quantities: Sequence[Quantity]) -> list[DotTable]:
    """A plot for each column with intervals."""
    forms = {quantity.name: quantity.format for quantity in quantities}
    return [
        dot_table(
            _capital(f"{_spaced(name)}: {_spaced(column)}"),
            _spaced(column),
            [
                Dot(row, cells.get(column), cells.get(column + _LOW), cells.get(column + _HIGH))
                for row, cells in rows.items()
            ],
            forms.get(column, ""),
            "The lines are 95 % intervals.",
        )
        for column in _with_intervals(rows)
    ]


def _listing(rows: _Rows) -> Listing:
    """The columns that are not drawn as dots."""
    drawn = {column + end for column in _with_intervals(rows) for end in ("", _LOW, _HIGH)}
    columns = [column for column in _columns(rows) if column not in drawn]
    told = [[row, *(_cell(cells.get(column)) for column in columns)] for row, cells in rows.items()]
    return Listing(["", *map(_spaced, columns)], told, len(told))


def _cell(value: float | None) -> str:
    return "not known" if value is None else number_text(value)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
