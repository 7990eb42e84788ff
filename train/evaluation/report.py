"""The report of an evaluation: `evaluation.json` and plots."""

import json
from collections.abc import Sequence
from pathlib import Path

from manyfaces.configs.files import write_atomic
from manyfaces.train.evaluation.plots import plot_result
from manyfaces.train.evaluation.result import Result

SUMMARY = "evaluation.json"


def save_report(results: Sequence[Result], folder: Path, step: int) -> list[Path]:
    """Write `evaluation.json`, and the curves and histograms of each result as PNG, to the folder;
    returns the files, `evaluation.json` first."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / SUMMARY
    sets = {result.name: result.summary() for result in results}
    write_atomic(summary, json.dumps({"step": step, "sets": sets}, indent=1, allow_nan=False))
    return [summary, *(file for result in results for file in plot_result(result, folder))]
