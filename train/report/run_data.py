"""A run as the page needs it, read from its folder; what is missing or broken is told in words."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact, redacted
from manyfaces.configs.urls import url_of
from manyfaces.train.checkpoint.fetched import PATIENCE_S, WORK_DIR
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.evaluation.report import RESULTS, read_report, report_folder, report_folders
from manyfaces.train.evaluation.stored import StoredResult
from manyfaces.train.folder import EVALUATION, RunFolder, work_folder
from manyfaces.train.metric_names import is_evaluation
from manyfaces.train.record import EVENTS, METRICS, read_rows
from manyfaces.train.tracking.attempts import Attempt, attempts

Metrics = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RunData:
    """What is known of one run."""

    name: str
    given: str | Path
    """The folder or the URL that a person gave."""
    folder: Path
    """Where its record is on this machine."""
    config: Mapping[str, Any]
    """The tree of `config.yaml`; empty where there is none."""
    config_text: str
    plan_text: str
    rows: Metrics
    """Those of `metrics.jsonl`, in the order of their steps."""
    events: Sequence[Mapping[str, Any]]
    attempts: Sequence[Attempt]
    results: Mapping[str, StoredResult]
    """The newest result of each protocol, by its name."""
    result_steps: Mapping[str, int]
    """The step that each of them is of."""
    result_folders: Mapping[str, Path]
    """Where the files are that each of them names."""
    quarantine: Sequence[Mapping[str, Any]]
    left_out: Sequence[Mapping[str, Any]]
    missing: Sequence[str] = field(default_factory=tuple)
    """Sentences about what the page cannot show, and why."""

    @property
    def last(self) -> dict[str, float]:
        """The last value of each number of the record."""
        known: dict[str, float] = {}
        for row in self.rows:
            known |= row
        return known

    @property
    def starts(self) -> Sequence[Mapping[str, Any]]:
        """The events of the starts of its workers."""
        return [attempt.start for attempt in self.attempts]


def read_run(run: str | Path) -> RunData:
    """Read the run in this folder, or the record of one at a URL, of which the files are fetched.
    Raises `UserError` where there is none."""
    folder = Path(run) if (url := url_of(run)) is None else _fetched_record(url)
    there = RunFolder(folder)
    files = [folder / METRICS, folder / EVENTS, there.config, there.identity]
    if not any(file.is_file() for file in files):
        what = "no such folder" if not folder.is_dir() else "no run in it"
        raise UserError(
            f"{redact(str(run))}: {what}; expected a run's folder, with {METRICS}, {EVENTS} or "
            f"{there.config.name} in it, such as runs/NAME"
        )
    missing: list[str] = []
    text, tree = _config(there, missing)
    events = read_rows(folder / EVENTS)
    rows = sorted(read_rows(folder / METRICS), key=lambda row: row["step"])
    results, steps, folders = _results(there, missing)
    _look_at_rows(rows, results, missing)
    return RunData(
        name=_name(tree, folder),
        given=run,
        folder=folder,
        config=tree,
        config_text=text,
        plan_text=_text(there.plan),
        rows=rows,
        events=redacted(events),
        attempts=attempts(redacted(events), _first_live(events)),
        results=results,
        result_steps=steps,
        result_folders=folders,
        quarantine=_json_lines(there.quarantine),
        left_out=_json_lines(there.left_out),
        missing=missing,
    )


def distinct(runs: Sequence[RunData]) -> list[RunData]:
    """The same runs, those of one name told apart by their folders. Raises `UserError` for one that
    is given twice."""
    names, folders = [run.name for run in runs], [run.folder.resolve() for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"{twice[0]}: the run is given twice; give each run once")
    return [
        run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs
    ]


def _fetched_record(url: str) -> Path:
    """The folder on this machine to which the record of the run at the URL was fetched, with the
    results of the newest step that was evaluated; what was fetched before is forgotten."""
    store = RunStore(url, PATIENCE_S)
    folder = work_folder(url, str(Path(WORK_DIR) / "fetched"))
    names = RunFolder(folder).record
    for name in names:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / EVALUATION, ignore_errors=True)
    _fetch(store, folder, names)
    rows = read_rows(folder / METRICS)
    if steps := [row["step"] for row in rows if any(map(is_evaluation, row))]:
        results = report_folder(folder, max(steps)) / RESULTS
        _fetch(store, folder, [results.relative_to(folder).as_posix()])
    return folder


def _fetch(store: RunStore, folder: Path, names: Sequence[str]) -> None:
    for name, body in store.read_record(names).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)


def _first_live(events: Sequence[Mapping[str, Any]]) -> int:
    """From which event on an attempt that says nothing of its end counts as running: those of the
    last start do, as this page cannot know more."""
    starts = [number for number, event in enumerate(events) if event["kind"] == "start"]
    return starts[-1] if starts else 0


def _name(tree: Mapping[str, Any], folder: Path) -> str:
    section = tree.get("run")
    named = section.get("name") if isinstance(section, dict) else None
    return str(named or folder.resolve().name)


def _config(folder: RunFolder, missing: list[str]) -> tuple[str, dict[str, Any]]:
    """The text of the configuration and its tree."""
    text = _text(folder.config)
    if not text:
        missing.append(f"{folder.config.name} is not there, so the configuration is not shown.")
        return "", {}
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        missing.append(f"{folder.config.name} cannot be read as YAML; it is shown as it is.")
        return text, {}
    return text, tree


def _results(
    folder: RunFolder, missing: list[str]
) -> tuple[dict[str, StoredResult], dict[str, int], dict[str, Path]]:
    """The newest result of each protocol, its step, and the folder of its files."""
    results: dict[str, StoredResult] = {}
    steps: dict[str, int] = {}
    folders: dict[str, Path] = {}
    for step, place in report_folders(folder.path).items():
        try:
            report = read_report(place)
        except UserError as error:
            missing.append(f"{redact(str(error))}.")
            continue
        for result in report.results:
            results[result.name] = result
            steps[result.name], folders[result.name] = step, place
    return results, steps, folders


def _look_at_rows(rows: Metrics, results: Mapping[str, StoredResult], missing: list[str]) -> None:
    if not rows:
        missing.append(f"{METRICS} has no numbers yet, so there are no training curves.")
    elif not results and not any(RESULTS in line for line in missing):
        evaluated = any(is_evaluation(name) for row in rows for name in row)
        why = (
            "the numbers of evaluations are known, but not their curves and images, which this "
            "version keeps in evaluation/step-N/"
            if evaluated
            else "no evaluation was recorded"
        )
        missing.append(f"Results are not shown in detail: {why}; `manyfaces evaluate` makes one.")


def _text(file: Path) -> str:
    """The text of a file without credentials; "" where it is not there."""
    try:
        return redact(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in the lines of a file; a line that a kill has torn is left out."""
    rows = []
    for line in _text(file).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
