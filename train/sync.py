"""Send MLflow what it lacks of a run that no process writes."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.load import load
from manyfaces.configs.redact import is_redacted, redacted
from manyfaces.configs.schema import Config
from manyfaces.train.evaluation.report import read_report, report_folders
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import Lease, take_launch
from manyfaces.train.record import METRICS, Record, read_rows
from manyfaces.train.report.own import write_own_page
from manyfaces.train.tracking.mirror import Mirror, last_status
from manyfaces.train.tracking.place import mlflow_run

TIMEOUT_S, EVALUATION_S = 3600.0, 60.0
"""Longest wait for MLflow, where everything is sent, and where it is told of an evaluation."""


def sync_mlflow(run: Path, words: Sequence[str], console: Console) -> None:
    """Send metrics, files and status of the run in this folder; `words` may change `tracking`.
    Raises `UserError` where there is no run, another process writes it, or MLflow refuses."""
    folder = RunFolder(run.absolute())
    if not folder.identity.exists() or not folder.config.exists():
        raise UserError(f"{run}: no run is there; give a run's folder, as in runs/NAME")
    config = _config(folder, words)
    lease = take_launch(folder.path, console.print)
    try:
        _add_results(folder)
        problem = _send(folder, config, lease, console, TIMEOUT_S)
    finally:
        lease.release()
    if problem:
        raise UserError(f"MLflow does not have everything: {problem}")
    known, status = mlflow_run(folder.path) or {}, last_status(folder.path)
    console.print(f"MLflow has everything: run {known['run_id']}, {status}, in {known['uri']}")


def record_evaluation(run: Path, console: Console) -> None:
    """Have what was evaluated of the run in this folder in its record, on its page, and in MLflow
    if it is there. A run that another process writes is left alone, and a checkpoint that is in no
    run has no record: what cannot be done is told in a line."""
    folder = RunFolder(run.absolute())
    if not folder.identity.exists() or not folder.config.exists():
        return
    try:
        lease = take_launch(folder.path, console.print)
    except UserError as error:
        console.print(
            f"its record and MLflow do not have this yet ({error}); later "
            f"`manyfaces sync-mlflow {run}` sends it"
        )
        return
    try:
        _add_results(folder)
        if folder.report.exists():
            write_own_page(folder, console.print)
        if mlflow_run(folder.path) is None:
            return
        problem = _send(folder, _config(folder, ()), lease, console, EVALUATION_S)
        console.print(f"MLflow      {problem or 'has it'}")
    except UserError as error:
        console.print(f"MLflow does not have it: {error}")
    finally:
        lease.release()


def _send(
    folder: RunFolder, config: Config, lease: Lease, console: Console, timeout_s: float
) -> str:
    """Send MLflow what it lacks; why it does not have everything, "" where it does."""
    mirror = Mirror(folder.path, config, flatten(redacted(config).model_dump()))
    lease.on_lost = lambda _: mirror.abandon()
    problem = mirror.close(last_status(folder.path), folder.artifacts, timeout_s)
    for note in mirror.notes:
        console.print(f"MLflow: {note}")
    return problem


def _add_results(folder: RunFolder) -> None:
    """Add to the run's metrics what its reports have of each step and the metrics do not. A report
    that cannot be read is left out."""
    rows = read_rows(folder.path / METRICS)
    record = Record(folder.path)
    for step, there in report_folders(folder.path).items():
        known: dict[str, float] = {}
        for row in rows:
            known |= row if row["step"] == step else {}
        with contextlib.suppress(UserError):
            found: dict[str, float] = {}
            for result in read_report(there).results:
                found |= result.metrics()
            new = {name: value for name, value in found.items() if known.get(name) != value}
            if new:
                minutes = {name: known[name] for name in ("minutes",) if name in known}
                record.metrics(step, **new, **minutes)


def _config(folder: RunFolder, words: Sequence[str]) -> Config:
    """The run's configuration, for where the run stands now, and the server that had it last."""
    config = load(str(folder.config), words)
    known = mlflow_run(folder.path) or {}
    uri, before = config.tracking.uri, known.get("uri", "")
    if uri is None and not before.startswith("sqlite:"):
        uri = before or None
    if uri is not None and is_redacted(uri):
        # The run kept no credentials of the server's.
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            raise UserError(
                f"{folder.path}: the run keeps no credentials of its MLflow server; give "
                "tracking.uri=URL, or set MLFLOW_TRACKING_URI"
            )
    run = config.run.model_copy(update={"dir": str(folder.path.parent), "name": folder.path.name})
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"run": run, "tracking": tracking})
