"""Send MLflow what it lacks of a run that no process writes."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.load import load
from manyfaces.configs.redact import is_redacted, redacted
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import take_launch
from manyfaces.train.tracking.mirror import Mirror, last_status
from manyfaces.train.tracking.place import mlflow_run

TIMEOUT_S = 3600.0


def sync_mlflow(run: Path, words: Sequence[str], console: Console) -> None:
    """Send metrics, files and status of the run in this folder; `words` may change `tracking`.
    Raises `UserError` where there is no run, another process writes it, or MLflow refuses."""
    folder = RunFolder(run.absolute())
    if not folder.identity.exists() or not folder.config.exists():
        raise UserError(f"{run}: no run is there; give a run's folder, as in runs/NAME")
    config = _config(folder, words)
    lease = take_launch(folder.path, console.print)
    try:
        mirror = Mirror(folder.path, config, flatten(redacted(config).model_dump()))
        lease.on_lost = lambda _: mirror.abandon()
        status = last_status(folder.path)
        problem = mirror.close(status, folder.artifacts, TIMEOUT_S)
    finally:
        lease.release()
    for note in mirror.notes:
        console.print(f"MLflow: {note}")
    if problem:
        raise UserError(f"MLflow does not have everything: {problem}")
    known = mlflow_run(folder.path) or {}
    console.print(f"MLflow has everything: run {known['run_id']}, {status}, in {known['uri']}")


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
