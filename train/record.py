"""The run's own record, on disk before anything else knows it: `metrics.jsonl` (numbers by step)
and `events.jsonl` (what happened)."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from manyfaces.configs.files import write_atomic

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


class Record:
    """Append-only; written by rank 0. One line is one write, so a kill leaves at most a torn last
    line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, **values: float) -> None:
        """Append numbers that were measured at a step."""
        self._append(METRICS, {"step": step, "time": time.time(), **values})

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Append what happened: its kind, a line for people, and facts for programs."""
        self._append(EVENTS, {"kind": kind, "time": time.time(), "message": message, **facts})

    def rewind(self, step: int) -> None:
        """Forget metrics after `step`: a resumed run measures those steps again."""
        kept = [row for row in read_rows(self.folder / METRICS) if row["step"] <= step]
        write_atomic(self.folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(row) + "\n")


class NoRecord(Record):
    """What the other ranks hold."""

    def __init__(self) -> None:
        pass

    def _append(self, name: str, row: dict[str, Any]) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a jsonl file; a torn line is left out."""
    return parse(path.read_text()) if path.exists() else []


def parse(text: str) -> list[dict[str, Any]]:
    """Rows of the text of a jsonl file; lines that are not JSON are left out."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def last_event(folder: Path, *kinds: str) -> dict[str, Any] | None:
    """The last event of one of these kinds in a run's folder, if there is one."""
    return next((row for row in reversed(read_rows(folder / EVENTS)) if row["kind"] in kinds), None)
