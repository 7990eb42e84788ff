"""The figures that a run is known by, each as the record has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

from manyfaces.train.evaluation.result import metric
from manyfaces.train.report.configuration import ABSENT
from manyfaces.train.report.evaluations import Figure, figure, figures
from manyfaces.train.report.run_data import RunData
from manyfaces.train.report.scales import number_text
from manyfaces.train.report.training import LOSS, RATE, headlines


@dataclass(frozen=True)
class SideBySide:
    """A figure of several runs."""

    label: str
    values: Sequence[Figure]


def headline(run: RunData) -> list[Figure]:
    """The number that stands for each protocol, then loss, rate, steps and time."""
    return [*_of_protocols(run), *_of_training(run)]


def side_by_side(runs: Sequence[RunData]) -> list[SideBySide]:
    """All figures of the runs that are for people, those of the protocols first."""
    columns = []
    for run in runs:
        named = {
            f"{result.name}: {each.label}": each
            for result in run.results.values()
            for each in figures(result)
        }
        for each in _of_protocols(run):
            named.setdefault(each.label, each)
        columns.append(named | {each.label: each for each in _of_training(run)})
    last = dict.fromkeys(each.label for run in runs for each in _of_training(run))
    labels = [
        label for label in dict.fromkeys(k for each in columns for k in each) if label not in last
    ]
    return [
        SideBySide(label, [column.get(label, Figure(label, ABSENT)) for column in columns])
        for label in [*labels, *last]
    ]


def _of_protocols(run: RunData) -> list[Figure]:
    found = []
    for name, (label, form, result_name) in headlines(run).items():
        shown = f"{result_name}: {label}"
        result = run.results.get(result_name)
        if result is None or metric(result_name, result.quantities[0]) != name:
            found.append(Figure(shown, number_text(run.last[name], form)))
            continue
        told = figure(result, result.quantities[0])
        found.append(Figure(shown, told.value, told.interval, told.deviation))
    return found


def _of_training(run: RunData) -> list[Figure]:
    last = run.last
    rates = [row[RATE] for row in run.rows if RATE in row]
    found = []
    if LOSS in last:
        found.append(Figure("loss, last", f"{last[LOSS]:.3f}"))
    if rates:
        found.append(Figure("images/s, median", f"{median_high(rates):,.0f}"))
    if "step" in last:
        found.append(Figure("steps", f"{last['step']:,.0f}"))
    if "minutes" in last:
        found.append(Figure("minutes of training", f"{last['minutes']:,.1f}"))
    return found
