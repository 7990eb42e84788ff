"""The run's own record, on disk before anything else knows it: `metrics.jsonl` (numbers by step)
and `events.jsonl` (what happened)."""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from manyfaces.configs.files import write_atomic
from manyfaces.configs.redact import redacted

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Record:
    """Append-only; written by rank 0. One line is one write, so a kill leaves at most a torn last
    line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, **values: float) -> None:
        """Append numbers that were measured at a step. NaN and infinities are left out, which JSON
        does not have."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        self._append(METRICS, {"step": step, "time": time.time(), **known})

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Append what happened: its kind, a line for people, and facts for programs, all without
        credentials."""
        row = {"kind": kind, "time": time.time(), "message": message, **facts}
        self._append(EVENTS, redacted(row))

    def measured(self, step: int) -> set[str]:
        """The names of the numbers that are known of a step."""
        rows = (row for row in read_rows(self.folder / METRICS) if row["step"] == step)
        return {name for row in rows for name in row}

    def rewind(self, step: int) -> None:
        """Forget metrics after `step`: a resumed run measures those steps again."""
        kept = [row for row in read_rows(self.folder / METRICS) if row["step"] <= step]
        write_atomic(self.folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        append_row(self.folder / name, row)


class NoRecord(Record):
    """What the other ranks hold."""

    def __init__(self) -> None:
        pass

    def _append(self, name: str, row: dict[str, Any]) -> None:
        pass

    def measured(self, step: int) -> set[str]:
        return set()

    def rewind(self, step: int) -> None:
        pass


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to one of the record's files."""
    line = json.dumps(row) + "\n"
    with path.open("ab+") as file:
        # A kill may have torn the last line, which must not swallow this one.
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one of the record's files; lines that are none of its rows are left out."""
    return parse(path.read_bytes(), path.name) if path.exists() else []


def parse(body: bytes, name: str) -> list[dict[str, Any]]:
    """Rows in the bytes of the file of this name, METRICS or EVENTS; lines that are torn, are not
    JSON or do not hold what such a row does are left out."""
    fits = _is_event if name == EVENTS else _is_measured
    rows = []
    for line in body.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and _is_number(row.get("time")) and fits(row):
                rows.append(row)
    return rows


def _is_event(row: dict[str, Any]) -> bool:
    table = row.get("table", {"columns": [], "rows": []})
    return (
        isinstance(row.get("kind"), str)
        and isinstance(row.get("message"), str)
        and isinstance(row.get("step", 0), int)
        and isinstance(table, dict)
        and table.keys() == {"columns", "rows"}
        and all(isinstance(column, str) for column in _listed(table["columns"]))
        and all(isinstance(line, str) for line in _listed(row.get("last_lines", [])))
        and isinstance(row.get("log", ""), str)
        and all(isinstance(cells, list) for cells in _listed(table["rows"]))
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_measured(row: dict[str, Any]) -> bool:
    return isinstance(row.get("step"), int) and all(_is_number(value) for value in row.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def last_event(folder: Path, *kinds: str, behind: int = 0) -> dict[str, Any] | None:
    """The last event of one of these kinds in a run's folder, behind so many of any kind, if there
    is one. Events are told apart by their number, as a clock may be set back."""
    known = read_rows(folder / EVENTS)[behind:]
    return next((row for row in reversed(known) if row["kind"] in kinds), None)
