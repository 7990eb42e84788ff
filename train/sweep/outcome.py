"""What came of a sweep's trials, read from their records: a table and a plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from manyfaces.train.evaluation.plots import plot_lines
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import METRICS, read_rows
from manyfaces.train.sweep.grid import Trial
from manyfaces.train.sweep.sweep import Planned
from manyfaces.train.sweep.trial import is_finished

PLOT = "sweep.png"


@dataclass(frozen=True)
class Outcome:
    """What came of one trial."""

    trial: Trial
    values: tuple[tuple[float, float], ...]
    """Epochs and values of the metric."""
    best: float | None
    state: str
    is_failed: bool


def outcomes(what: Planned) -> list[Outcome]:
    """What came of each trial, the best first."""
    found = [
        _outcome(what, trial, num_steps)
        for trial, num_steps in zip(what.trials, what.num_steps, strict=True)
    ]
    sign = -1 if what.asked.mode == "max" else 1
    return sorted(found, key=lambda each: math.inf if each.best is None else sign * each.best)


def table(what: Planned, found: Sequence[Outcome]) -> Table:
    """A row for each trial."""
    made = Table(
        Column("run", no_wrap=True), *(axis.key for axis in what.axes), what.asked.metric, "", ""
    )
    for each in found:
        best = "-" if each.best is None else f"{each.best:.4g}"
        epochs = f"{each.values[-1][0]:.3g} epochs" if each.values else ""
        cells = (each.trial.name, *each.trial.values, best, epochs)
        state = Text(each.state, "red" if each.is_failed else "")
        made.add_row(*map(Text, cells), state)
    return made


def plot(what: Planned, found: Sequence[Outcome]) -> Path:
    """Draw the metric over epochs, a line for each trial; returns the file."""
    lines = {", ".join(each.trial.values): each.values for each in found if each.values}
    legend = ", ".join(axis.key for axis in what.axes)
    return plot_lines(lines, legend, "epochs", what.asked.metric, what.folder / PLOT)


def _outcome(what: Planned, trial: Trial, num_steps: int) -> Outcome:
    folder, metric = RunFolder.of(trial.config).path, what.asked.metric
    rows = [row for row in read_rows(folder / METRICS) if metric in row]
    values = tuple(
        (row["step"] / num_steps * trial.config.train.epochs, row[metric]) for row in rows
    )
    best = max if what.asked.mode == "max" else min
    finished = is_finished(folder, num_steps)
    state = "finished" if finished else "unfinished"
    if not finished and trial.name in what.fallen_behind:
        state = "stopped early"
    elif not finished and (fault := what.faults.get(trial.name)):
        state = f"failed: {fault}"
    return Outcome(
        trial,
        values,
        best((value for _, value in values), default=None),
        state,
        is_failed=not finished and trial.name not in what.fallen_behind,
    )
