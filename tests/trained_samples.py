"""The list of samples that a run has trained on, as `tracking.log_samples` has it written."""

import json
from pathlib import Path
from typing import Any


def read_samples(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of all ranks by step, each step's in the order of the ranks."""
    found: dict[int, list[dict[str, Any]]] = {}
    paths = sorted(folder.glob("rank-*.jsonl"), key=lambda path: int(path.stem[5:]))
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["step"], []).append(row)
    return found
