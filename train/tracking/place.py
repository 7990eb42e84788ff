"""Where in MLflow a run stands: the server, and what the run's folder keeps of it."""

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.redact import redact
from manyfaces.train.folder import RUN_FILE, RunFolder

LOCAL_PORT = 5000
"""Where `mlflow ui` listens by default."""


def tracking_uri(config: schema.Config) -> str:
    """The server of the configuration, else of the environment, else sqlite beside the runs. Raises
    `UserError` where the address of that database cannot be written."""
    if told := config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return told
    database = RunFolder.of(config).path.parent.resolve() / "mlflow.db"
    if strange := {char for char in "?%" if char in str(database)}:
        raise UserError(
            f"run.dir {database.parent}: MLflow's database cannot stand in a folder with "
            f"{' or '.join(sorted(strange))} in its name; rename the folder, or set tracking.uri"
        )
    return f"sqlite:///{database}"


def mlflow_run(folder: Path) -> dict[str, Any] | None:
    """Which MLflow run continues the run in this folder, if there is one; none where the file that
    says so holds anything else."""
    told = _kept(folder)
    fits = all(isinstance(told.get(key), str) for key in ("uri", "run_id"))
    return told if fits else None


def tag_value(folder: Path) -> str:
    """A UUID that the MLflow run of the run in this folder bears as a tag. It is kept before MLflow
    hears of it."""
    kept = _kept(folder)
    tag = kept.get("tag")
    if not isinstance(tag, str):
        tag = uuid.uuid4().hex
        write_atomic(folder / RUN_FILE, json.dumps({**kept, "tag": tag}))
    return tag


def keep(folder: Path, uri: str, run_id: str, experiment_id: str) -> None:
    """Write down at once which MLflow run it is: another one must not be made."""
    kept = _kept(folder)
    wanted = {
        "tag": tag_value(folder),
        "uri": redact(uri),
        "run_id": run_id,
        "experiment_id": experiment_id,
    }
    if any(kept.get(key) != wanted[key] for key in ("uri", "run_id", "experiment_id")):
        write_atomic(folder / RUN_FILE, json.dumps(wanted))


def opening_lines(folder: Path, uri: str) -> list[str]:
    """What a person types or opens to look at the run: the address of its page, and for a database
    the command that serves it first. None of it has credentials."""
    lines, server = [], redact(uri)
    if uri.startswith("sqlite:"):
        command = Path(sys.executable).with_name("mlflow")
        lines.append(f"{command} ui --backend-store-uri {uri}")
        server = f"http://127.0.0.1:{LOCAL_PORT}"
    known = mlflow_run(folder) or {}
    page = ""
    if known.get("uri") == redact(uri) and isinstance(known.get("experiment_id"), str):
        # Without the last word MLflow opens its pages about language models, whatever the
        # experiment says of its kind, where nothing else was chosen in that browser before.
        page = (
            f"/#/experiments/{known['experiment_id']}/runs/{known['run_id']}"
            "?workflowType=machine_learning"
        )
    if page or not lines:
        lines.append(f"{server.rstrip('/')}{page}")
    return lines


def _kept(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
