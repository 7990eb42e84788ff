"""Results of protocols as the page shows them: figures, curves, histograms, groups and pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.evaluation.stored import StoredCurve, StoredHistogram, StoredLine, StoredResult
from manyfaces.train.report.course import Listing
from manyfaces.train.report.dot_table import DotTable
from manyfaces.train.report.drawing import Drawing, Rule
from manyfaces.train.report.examples import Shown, shown_examples
from manyfaces.train.report.histogram_chart import HistogramChart, draw_histogram
from manyfaces.train.report.line_chart import Line, LineChart, draw_lines
from manyfaces.train.report.result_tables import capital, cells_listing, dot_plots, rows_of, spaced
from manyfaces.train.report.run_data import RunData
from manyfaces.train.report.scales import number_text

_ROC, _DET = "roc", "det"


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
    charts = [_curve(curve) for curve in _curves(result).values()]
    charts += [
        _histogram(each, f"{capital(spaced(kind))}: {_title(each.title, result.name)}")
        for kind, each in result.histograms.items()
        if each.edges
    ]
    folder = run.result_folders[result.name]
    kinds_shown = [
        ExampleKind(capital(title), shown_examples(examples, folder))
        for title, examples in result.examples.items()
    ]
    dots = [
        each
        for name, table in result.tables.items()
        for each in dot_plots(name, rows_of(table), result.quantities)
    ]
    tables = {
        capital(spaced(name)): listing
        for name, table in result.tables.items()
        if (listing := cells_listing(rows_of(table))).columns[1:]
    }
    counts = [f"{count:,} {name}" for name, count in result.counts.items()]
    about = "; ".join([f"step {run.result_steps[result.name]:,}", *counts])
    anchor = f"result-{list(run.results).index(result.name)}"
    return Evaluated(result.name, about, figures(result), charts, dots, tables, kinds_shown, anchor)


def _compared(name: str, runs: Sequence[RunData]) -> Evaluated:
    having = [run for run in runs if name in run.results]
    known = {run.name: _curves(run.results[name]) for run in having}
    kinds = dict.fromkeys(kind for curves in known.values() for kind in curves)
    charts = []
    for kind in kinds:
        curves = {
            run.name: (runs.index(run), known[run.name][kind])
            for run in having
            if kind in known[run.name]
        }
        first = next(iter(curves.values()))[1]
        if any(curve.title != first.title for _, curve in curves.values()):
            # What follows a comma are figures of one run.
            first = first.model_copy(update={"title": first.title.partition(",")[0]})
        lines = [_line(line, curve, style) for line, (style, curve) in curves.items()]
        charts.append(draw_lines(_chart(first, lines)))
    steps = ", ".join(f"{run.name} at step {run.result_steps[name]:,}" for run in having)
    anchor = f"result-{list(dict.fromkeys(n for run in runs for n in run.results)).index(name)}"
    return Evaluated(name, steps, [], charts, [], {}, [], anchor)


def _curves(result: StoredResult) -> dict[str, StoredCurve]:
    """The curves of a result, and behind its ROC the same as DET, where it has none of its own."""
    curves: dict[str, StoredCurve] = {}
    for kind, named in result.curves.items():
        curve = named.model_copy(update={"title": _title(named.title, result.name)})
        curves[kind] = curve
        if kind == _ROC and _DET not in result.curves:
            curves[_DET] = _det(curve)
    return curves


def _title(title: str, name: str) -> str:
    """The title of a plot, without the name of the result, below which it stands here."""
    return capital(title.removeprefix(f"{name}: "))


def _det(roc: StoredCurve) -> StoredCurve:
    """What is rejected wrongly, on logarithmic axes (Martin et al., 1997, have normal deviates):
    there small errors can be told apart."""
    changed = {
        "title": "DET",
        "y_label": "false reject rate",
        "log_x": True,
        "log_y": True,
        "lines": {
            name: line.model_copy(update=_rejected(line)) for name, line in roc.lines.items()
        },
    }
    return roc.model_copy(update={**_rejected(roc), **changed})


def _rejected(line: StoredLine) -> dict[str, tuple[float, ...]]:
    rest = {"y": line.y, "low": line.high, "high": line.low}
    return {name: tuple(1 - value for value in values) for name, values in rest.items()}


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


def _histogram(histogram: StoredHistogram, title: str) -> Drawing:
    rule = None
    if histogram.mark is not None:
        rule = Rule(histogram.mark, f"threshold {number_text(histogram.mark, '.3f')}")
    styles = {group: number for number, group in enumerate(histogram.counts)}
    chart = HistogramChart(
        title,
        histogram.x_label,
        histogram.y_label,
        histogram.edges,
        histogram.counts,
        styles,
        rule,
    )
    return draw_histogram(chart)
