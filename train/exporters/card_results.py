"""What a checkpoint scored, as Markdown tables: read from the `evaluation.json` of its step."""

import json
from pathlib import Path
from typing import Any

from manyfaces.train.checkpoint.layout import folder_name
from manyfaces.train.checkpoint.state import RunState

_NOTHING = (
    "This checkpoint was not evaluated. `manyfaces evaluate RUN --pairs BIN` scores it; export it "
    "again to have the results here."
)
_SUMMARY = "evaluation.json"
_STD, _INTERVAL = "_std", "_interval"


def results_of(checkpoint: Path | None, state: RunState | None) -> str:
    """The results of a checkpoint by protocol, and by group where a protocol has groups."""
    if checkpoint is None or state is None:
        return _NOTHING
    sets = _sets(checkpoint.parent.parent / "evaluation", state.step)
    if not sets:
        return _NOTHING
    return "\n\n".join(_protocol(name, told) for name, told in sorted(sets.items()))


def _sets(folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """What was measured at this step, by the name of the result."""
    for file in (folder / folder_name(step) / _SUMMARY, folder / _SUMMARY):
        try:
            told = json.loads(file.read_bytes())
            sets = told["sets"] if told["step"] == step else {}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if sets and all(isinstance(each, dict) for each in sets.values()):
            return dict(sets)
    return {}


def _protocol(name: str, told: dict[str, Any]) -> str:
    numbers = {key: value for key, value in told.items() if not isinstance(value, dict | list)}
    lines = [f"### {name}", "", "| | value | spread |", "|---|---|---|"]
    for key, value in numbers.items():
        if not key.endswith(_STD):
            lines.append(f"| {_words(key)} | {_number(value)} | {_spread(key, told)} |")
    for key, table in told.items():
        if isinstance(table, dict) and any(isinstance(row, dict) for row in table.values()):
            lines += ["", f"{_words(key)}:", "", *_rows(table)]
    return "\n".join(lines)


def _rows(table: dict[str, Any]) -> list[str]:
    """A table of rows by label, such as one of groups."""
    rows = {label: row for label, row in table.items() if isinstance(row, dict)}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(map(_words, columns))} |", f"|---|{'---|' * len(columns)}"]
    for label, row in rows.items():
        cells = " | ".join(_number(row.get(column)) for column in columns)
        lines.append(f"| {label} | {cells} |")
    return lines


def _spread(key: str, told: dict[str, Any]) -> str:
    """A standard deviation or a 95 % interval, where one was measured."""
    interval, deviation = told.get(f"{key}{_INTERVAL}"), told.get(f"{key}{_STD}")
    if isinstance(interval, list) and len(interval) == 2:
        return f"{_number(interval[0])} to {_number(interval[1])} (95 %)"
    return f"± {_number(deviation)} (standard deviation)" if deviation is not None else ""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "not known" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
