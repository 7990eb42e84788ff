"""What a run is, in words: how it stands, what it read, on what and by which command it ran."""

from collections.abc import Mapping
from typing import Any

from manyfaces.configs.redact import redact
from manyfaces.configs.urls import url_of
from manyfaces.train.report.course import time_text
from manyfaces.train.report.run_data import RunData
from manyfaces.train.tracking.inputs import known_datasets
from manyfaces.train.tracking.place import mlflow_run

Facts = list[tuple[str, str]]


def status(run: RunData) -> str:
    """How the run stands, in a few words."""
    if not run.attempts:
        return "not started, as far as the record tells"
    newest = run.attempts[-1]
    if newest.status == "FINISHED":
        return "finished"
    if newest.status == "RUNNING":
        return "running when this page was made, or killed without a word"
    return newest.reason or newest.status.lower()


def facts(run: RunData) -> Facts:
    """Label and text of each thing that is known."""
    found: Facts = [("status", status(run))]
    if run.attempts:
        found.append(("began", f"{time_text(run.attempts[0].started)} UTC"))
        if (ended := run.attempts[-1].ended) is not None:
            found.append(("ended", f"{time_text(ended)} UTC"))
        found += _of_start(run.attempts[-1].start)
    if len(run.attempts) > 1:
        found.append(("restarts", str(len(run.attempts) - 1)))
    if known := mlflow_run(run.folder):
        found.append(("MLflow", redact(f"run {known['run_id']} in {known['uri']}")))
    found.append(("folder", redact(str(url_of(run.given) or run.folder))))
    return found


def mlflow_page(run: RunData) -> str:
    """The address of the run's page in MLflow, where that is a server; else ""."""
    known = mlflow_run(run.folder) or {}
    server, experiment = redact(str(known.get("uri", ""))), known.get("experiment_id")
    url = url_of(server) or ""
    if not url.startswith(("http://", "https://")) or not isinstance(experiment, str):
        return ""
    return f"{url}/#/experiments/{experiment}/runs/{known['run_id']}"


def _of_start(start: Mapping[str, Any]) -> Facts:
    found: Facts = []
    for dataset in known_datasets(start.get("datasets")):
        share = "" if dataset["share"] == 1 else f", {dataset['share']:.0%} of each batch"
        size = f"{dataset['images']:,} images of {dataset['identities']:,} identities"
        found.append(("dataset", f"{dataset['path']}: {size}{share}"))
        found.append(("its fingerprint", str(dataset["fingerprint"])))
    if isinstance(devices := start.get("devices"), dict):
        told = ", ".join(f"{count} x {name}" for name, count in devices.items())
        found.append(("workers", f"{start.get('world_size', '?')} on {told}"))
    if isinstance(origin := start.get("origin"), dict):
        if "command" in origin:
            found.append(("command", str(origin["command"])))
        if "commit" in origin:
            changed = ", with changes that are not committed" if origin.get("dirty") else ""
            found.append(("commit", f"{origin['commit']}{changed}"))
    if isinstance(versions := start.get("versions"), dict):
        found.append(("versions", ", ".join(f"{name} {each}" for name, each in versions.items())))
    return found
