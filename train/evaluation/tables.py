"""Results as people read them: rows of a run's last table, the progress line, and tables of several
results."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from manyfaces.train.evaluation.result import QuantitiesByName, Result, finite, metric
from manyfaces.train.evaluation.result import Table as TableOfResult


def headlines(quantities: QuantitiesByName, metrics: Mapping[str, float]) -> str:
    """The headline of each result that the metrics know: `lfw 99.5% cfp_fp 96.1%`."""
    texts = []
    for name, (headline, *_) in quantities.items():
        value = metrics.get(metric(name, headline))
        if value is not None:
            texts.append(f"{name} {value:{headline.brief_format}}")
    return " ".join(texts)


def summary_rows(
    quantities: QuantitiesByName, metrics: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Label and text of each number for people, of the results whose headline the metrics know."""
    return [
        (f"{name}: {quantity.label}", quantity.text(metrics.get(metric(name, quantity))))
        for name, described in quantities.items()
        if metric(name, described[0]) in metrics
        for quantity in described
        if quantity.heading
    ]


def results_tables(results: Sequence[Result]) -> list[Table]:
    """A row for each result, in one table for those with the same columns."""
    alike: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        alike.setdefault(_columns(result), []).append(result)
    return [_table(columns, group) for columns, group in alike.items()]


def _columns(result: Result) -> tuple[str, ...]:
    headings = [quantity.heading for quantity in result.quantities if quantity.heading]
    return ("set", *result.counts, *headings)


def _table(columns: Sequence[str], results: Sequence[Result]) -> Table:
    table = Table(*columns)
    for result in results:
        cells = [result.name, *(f"{count:,}" for count in result.counts.values())]
        for quantity in result.quantities:
            if quantity.heading:
                value = finite(result.scalars[quantity.name])
                text = quantity.text(value)
                if quantity.name in result.deviations and value is not None:
                    text += f" ± {result.deviations[quantity.name]:{quantity.format}}"
                elif quantity.name in result.intervals and value is not None:
                    ends = result.intervals[quantity.name]
                    text += " [{}]".format(", ".join(format(e, quantity.format) for e in ends))
                cells.append(text)
        table.add_row(*cells)
    return table


def detail_tables(results: Sequence[Result]) -> list[Table]:
    """The tables that results hold, each by itself: a value with its interval in one cell."""
    return [
        _detail_table(f"{result.name}: {name.replace('_', ' ')}", rows)
        for result in results
        for name, rows in result.tables.items()
        if rows
    ]


def _detail_table(title: str, rows: TableOfResult) -> Table:
    cells = {
        row: each if isinstance(each, Mapping) else {"value": each} for row, each in rows.items()
    }
    columns = list(dict.fromkeys(column for each in cells.values() for column in each))
    ends = {f"{column}_{end}" for column in columns for end in ("low", "high")}
    shown = [column for column in columns if column not in ends]
    table = Table("", *(column.replace("_", " ") for column in shown), title=title)
    for row, each in cells.items():
        table.add_row(row, *(_cell(each, column) for column in shown))
    return table


def _cell(cells: Mapping[str, float | None], column: str) -> str:
    value, *ends = (finite(cells.get(name)) for name in (column, f"{column}_low", f"{column}_high"))
    if value is None:
        return "-"
    interval = [number_text(end) for end in ends if end is not None]
    return number_text(value) + (f" [{', '.join(interval)}]" if interval else "")


def number_text(value: float) -> str:
    """A number of any kind for people: a count whole, another one to four digits."""
    return f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4g}"
