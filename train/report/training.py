"""Curves of the training: what was recorded of each step, over steps and over minutes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from manyfaces.train.evaluation.result import metric
from manyfaces.train.metric_names import is_evaluation
from manyfaces.train.report.drawing import Drawing, Rule
from manyfaces.train.report.line_chart import Line, LineChart, draw_lines
from manyfaces.train.report.run_data import RunData

LOSS, LEARNING_RATE, RATE = "train/loss", "train/lr", "images_per_s"
_MINUTES = "minutes"
_LABELS = {
    LOSS: "loss",
    LEARNING_RATE: "learning rate",
    RATE: "images/s",
    "train/grad_norm": "gradient norm",
}
_NOT_SHOWN = {"train/epoch"}
_MOST_TOLD = 3


@dataclass(frozen=True)
class Curves:
    """The same curves twice."""

    by_step: Sequence[Drawing]
    by_minutes: Sequence[Drawing]
    note: str = ""


@dataclass(frozen=True)
class _Measured:
    """A number of the record as a chart has it."""

    label: str
    lines: Mapping[str, tuple[RunData, str]]
    """The run and the name in its record, by what the line is called."""
    form: str = ""


def training_curves(runs: Sequence[RunData]) -> Curves:
    """Loss, learning rate, images a second and the gradient's norm, and the headline of each
    protocol; runs lie over each other."""
    measured = [*_of_training(runs, _LABELS), *_of_evaluation(runs)]
    return _drawn(measured, runs)


def further_curves(runs: Sequence[RunData]) -> Curves:
    """Whatever else was recorded of the training steps."""
    names = {name for run in runs for name in run.last if name.startswith("train/")}
    others = sorted(names - _LABELS.keys() - _NOT_SHOWN)
    labels = {name: name.removeprefix("train/").replace("_", " ") for name in others}
    return _drawn(list(_of_training(runs, labels)), runs)


def _drawn(measured: Sequence[_Measured], runs: Sequence[RunData]) -> Curves:
    return Curves(
        [_draw(each, "step", runs) for each in measured],
        [_draw(each, _MINUTES, runs) for each in measured],
        _note(runs),
    )


def _note(runs: Sequence[RunData]) -> str:
    """What the dotted lines are."""
    told = [rule.label for rule in _restarts(runs[0], "step")] if len(runs) == 1 else []
    if len(told) > _MOST_TOLD:
        return f"Dotted lines: the run was interrupted and went on there, {len(told)} times."
    return f"Dotted: {', '.join(told)}." if told else ""


def _of_training(runs: Sequence[RunData], labels: Mapping[str, str]) -> Iterator[_Measured]:
    for name, label in labels.items():
        names = {run.name if len(runs) > 1 else "": (run, name) for run in runs}
        if having := {line: each for line, each in names.items() if name in each[0].last}:
            yield _Measured(label, having)


def _of_evaluation(runs: Sequence[RunData]) -> Iterator[_Measured]:
    """For one run a chart for each kind of headline, with a line for each protocol; for several a
    chart for each protocol."""
    charts: dict[str, dict[str, tuple[RunData, str]]] = {}
    forms: dict[str, str] = {}
    for run in runs:
        for name, (label, form, result) in headlines(run).items():
            chart, line = (label, result) if len(runs) == 1 else (f"{result}: {label}", run.name)
            charts.setdefault(chart, {})[line] = run, name
            forms.setdefault(chart, form)
    for label, lines in charts.items():
        yield _Measured(label, lines, forms[label])


def headlines(run: RunData) -> dict[str, tuple[str, str, str]]:
    """Label, format and protocol of the number that stands for each protocol, by its name in the
    record. Where the results themselves are not kept it is the first that is recorded."""
    found: dict[str, tuple[str, str, str]] = {}
    for result in run.results.values():
        quantity = result.quantities[0]
        if (name := metric(result.name, quantity)) in run.last:
            found[name] = quantity.label, quantity.format, result.name
    for name in run.last:
        result_name, _, quantity_name = name.rpartition("/")
        if is_evaluation(name) and all(result_name != each[2] for each in found.values()):
            found[name] = quantity_name.replace("_", " "), "", result_name
    return found


def _draw(measured: _Measured, x_name: str, runs: Sequence[RunData]) -> Drawing:
    several = len(runs) > 1
    lines = []
    for number, (line, (run, name)) in enumerate(measured.lines.items()):
        points = {row[x_name]: row[name] for row in run.rows if name in row and x_name in row}
        x = sorted(points)
        # A run has its colour in all charts, also where another one has no such number.
        style = runs.index(run) if several else number
        lines.append(Line(line, x, [points[each] for each in x], style))
    x_label = "step" if x_name == "step" else "minutes of training"
    title = measured.label[:1].upper() + measured.label[1:]
    rules = () if several else _restarts(runs[0], x_name)
    chart = LineChart(title, x_label, measured.label, lines, form_y=measured.form, rules=rules)
    return draw_lines(chart)


def _restarts(run: RunData, x_name: str) -> list[Rule]:
    """Where the run went on after it had been interrupted."""
    places = {row["step"]: row[x_name] for row in run.rows if x_name in row}
    rules = []
    for attempt in run.attempts[1:]:
        step = attempt.start.get("step")
        before = [known for known in places if isinstance(step, int) and known <= step]
        if before:
            place = places[max(before)]
            rules.append(Rule(place, f"attempt {attempt.number} began at step {step}", True))
    return rules
