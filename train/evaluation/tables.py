"""Results as people read them: rows of a run's last table, the progress line, and tables of several
results."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from manyfaces.train.evaluation.result import QuantitiesByName, Result, finite, metric


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
                cells.append(text)
        table.add_row(*cells)
    return table
