"""MLflow as a mirror of the run's own record, off the step's path. The one file that knows mlflow.

A thread of the process that launched the run reads `metrics.jsonl` and sends what the server does
not have yet. A server that is away costs the run nothing: the record catches up, in this session or
a later one, without doubles. What was deleted there is restored or made anew.
"""

import json
import logging
import os
import threading
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.redact import redact
from manyfaces.train.folder import RUN_FILE, RunFolder
from manyfaces.train.metric_names import fit_name
from manyfaces.train.record import EVENTS, METRICS, last_event, read_rows

TAG = "manyfaces.run"
"""The tag that finds a run in MLflow again; its value is a UUID that `mlflow.json` keeps."""
Status = Literal["FINISHED", "FAILED", "KILLED"]
BATCH = 1000  # MLflow's limit of one log_batch
BATCH_PARAMS = 100

_MEND = "give another tracking.uri or tracking.experiment"
FINAL = {
    "RESOURCE_DOES_NOT_EXIST": _MEND,
    "RESOURCE_ALREADY_EXISTS": _MEND,
    "INVALID_PARAMETER_VALUE": _MEND,
    "INVALID_STATE": _MEND,
    "BAD_REQUEST": _MEND,
    "NOT_FOUND": _MEND,
    "ENDPOINT_NOT_FOUND": "give the tracking.uri of an MLflow server",
    "NOT_IMPLEMENTED": "give the tracking.uri of a newer MLflow server",
    "PERMISSION_DENIED": "ask for the right to write there, or " + _MEND,
    "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
}
"""Refusals of MLflow's that no second try changes, by their code, and what does."""


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


def last_status(folder: Path) -> Status:
    """How the run in this folder stands, once no process writes it: one that says nothing of its
    end was killed."""
    last = last_event(folder, "start", "finished", "stopped")
    by_kind: dict[str, Status] = {"finished": "FINISHED", "stopped": "FAILED"}
    return by_kind.get(last["kind"], "KILLED") if last else "KILLED"


def mlflow_run(folder: Path) -> dict[str, Any] | None:
    """Which MLflow run continues the run in this folder, if there is one; none where the file that
    says so holds anything else."""
    told = _kept(folder)
    fits = all(isinstance(told.get(key), str) for key in ("uri", "run_id"))
    return told if fits else None


def _kept(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _tag(folder: Path) -> str:
    """The value of `TAG` for the run in this folder, which is kept before MLflow hears of it."""
    kept = _kept(folder)
    tag = kept.get("tag")
    if not isinstance(tag, str):
        tag = uuid.uuid4().hex
        write_atomic(folder / RUN_FILE, json.dumps({**kept, "tag": tag}))
    return tag


class Mirror:
    """Mirrors one run into MLflow; the same MLflow run is continued when the run is resumed."""

    def __init__(
        self, folder: Path, config: schema.Config, params: dict[str, Any], period_s: float = 5.0
    ) -> None:
        self.folder, self.config, self.params, self.period_s = folder, config, params, period_s
        self.uri = tracking_uri(config)
        self.problem = ""
        """Why the server does not have everything, and what helps; "" when it does."""
        self.notes: list[str] = []
        """What was found deleted, and what was done about it."""
        self._client: Any = None
        self._run_id = ""
        self._last_step: dict[
            str, int
        ] = {}  # by metric: steps that are measured again after a resume are not sent twice
        # What MLflow's modules warn of is about themselves. Filters belong to the whole process, so
        # the thread must not change them while others work.
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
        self._ended, self._abandoned = threading.Event(), threading.Event()
        self._outcome: tuple[Status, list[Path]] = ("FAILED", [])
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def close(
        self,
        status: Status,
        artifacts: Iterable[Path] = (),
        timeout_s: float = 60.0,
    ) -> str:
        """Send the rest, the artifacts and the status; returns `problem`. Waits no longer than
        `timeout_s`."""
        self._outcome = (status, list(artifacts))
        self._ended.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.problem = redact(
                f"no answer from {self.uri} in {timeout_s:.0f} s; {self._later()}"
            )
        return self.problem

    def abandon(self) -> None:
        """Send nothing more: the run is another process's."""
        self._abandoned.set()
        self._ended.set()

    def _follow(self) -> None:
        # Few retries here: the next period tries again anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        while True:
            ended = self._ended.wait(self.period_s)
            if self._abandoned.is_set():
                return
            was_connected = self._client is not None
            if not self._try(ended) and self._client is None and was_connected and ended:
                self._try(ended)  # what was deleted meanwhile is made anew
            if ended:
                return

    def _try(self, ended: bool) -> bool:
        """Send what there is; whatever a server or its client raises must not reach the run."""
        try:
            try:
                self._send()
            finally:
                # One metric that is refused must not leave the run without its end.
                if ended and self._client is not None:
                    self._finish()
        except Exception as error:
            line = str(error).splitlines()[0] if str(error) else ""
            told = f"{self.uri}: {type(error).__name__}: {line}"
            self.problem = f"{redact(told)}; {self._remedy(error)}"
            return False
        self.problem = ""
        return True

    def _remedy(self, error: Exception) -> str:
        final = FINAL.get(getattr(error, "error_code", ""))
        if final is None:
            return self._later()
        self._client = None  # the next period finds out whether the run is there
        return f"that is final: {final}; then {self._later()}"

    def _later(self) -> str:
        return f"`manyfaces sync-mlflow {self.folder}` sends the rest"

    def _connect(self) -> None:
        import mlflow

        # Importing MLflow sets the level of its loggers: this has to come after it.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = mlflow.MlflowClient(self.uri)
        self._last_step = {}
        run = self._known_run(client) or self._tagged_run(client)
        run_id = run.info.run_id
        self._keep(run_id)
        client.update_run(run_id, status="RUNNING")
        params = {fit_name(key): str(value)[:500] for key, value in self.params.items()}
        missing = [
            mlflow.entities.Param(key, value)
            for key, value in params.items()
            if key not in run.data.params
        ]
        for start in range(0, len(missing), BATCH_PARAMS):
            client.log_batch(run_id, params=missing[start : start + BATCH_PARAMS])
        for key in run.data.metrics:
            self._last_step[key] = max(m.step for m in client.get_metric_history(run_id, key))
        self._client, self._run_id = client, run_id

    def _keep(self, run_id: str) -> None:
        """Write down at once which run it is: another one must not be made."""
        kept = _kept(self.folder)
        wanted = {"tag": _tag(self.folder), "uri": redact(self.uri), "run_id": run_id}
        if any(kept.get(key) != wanted[key] for key in ("uri", "run_id")):
            write_atomic(self.folder / RUN_FILE, json.dumps(wanted))

    def _known_run(self, client: Any) -> Any:
        """The run that was written to last, restored if it was deleted; None where it is gone."""
        known = mlflow_run(self.folder) or {}
        if redact(str(known.get("uri", ""))) != redact(self.uri):
            return None
        run_id = known["run_id"]
        try:
            run = client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._note(f"{self.uri} has no run {run_id} any more: another one gets everything")
            return None
        if run.info.lifecycle_stage != "deleted":
            return run
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.name != self.config.tracking.experiment:
            return None
        self._restore(client, experiment)
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            client.restore_run(run_id)
            self._note(f"run {run_id} had been deleted in {self.uri}: it is restored")
        return client.get_run(run_id)

    def _tagged_run(self, client: Any) -> Any:
        """The run that bears our tag: one whose making was not answered, else a new one."""
        experiment_id, tag = self._experiment(client), _tag(self.folder)
        found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{tag}'", max_results=1)
        if found:
            return client.get_run(found[0].info.run_id)
        began = [row["time"] for row in read_rows(self.folder / EVENTS)[:1]]
        made = client.create_run(
            experiment_id,
            start_time=int(began[0] * 1000) if began else None,
            tags={TAG: tag},
            run_name=self.config.run.name,
        )
        return made

    def _experiment(self, client: Any) -> str:
        """The id of the run's experiment, which is made or restored where it has to be."""
        name = self.config.tracking.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            self._restore(client, experiment)
            return str(experiment.experiment_id)
        artifacts = (
            (self.folder.parent.resolve() / "mlartifacts").as_uri()
            if self.uri.startswith("sqlite:")
            else None
        )
        return str(client.create_experiment(name, artifact_location=artifacts))

    def _restore(self, client: Any, experiment: Any) -> None:
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            self._note(
                f"experiment {experiment.name} had been deleted in {self.uri}: it is restored, "
                "with its runs; tracking.experiment names another one"
            )

    def _note(self, line: str) -> None:
        if (told := redact(line)) not in self.notes:
            self.notes.append(told)

    def _send(self) -> None:
        if self._client is None:
            self._connect()
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in read_rows(self.folder / METRICS)
            for name, value in row.items()
            if name not in ("step", "time")
            and row["step"] > self._last_step.get(key := fit_name(name), -1)
        ]
        for start in range(0, len(metrics), BATCH):
            batch = metrics[start : start + BATCH]
            self._client.log_batch(self._run_id, metrics=batch)
            self._last_step |= {m.key: m.step for m in batch}

    def _finish(self) -> None:
        """Send artifacts and status; one file that is refused keeps none of the others."""
        status, artifacts = self._outcome
        faults: list[Exception] = []
        for path in artifacts:
            folder = "plots" if path.suffix == ".png" else None
            try:
                if path.exists():
                    self._client.log_artifact(self._run_id, str(path), artifact_path=folder)
            except Exception as error:
                faults.append(error)
        ended = [row["time"] for row in read_rows(self.folder / EVENTS)[-1:]]
        end_time = int(ended[0] * 1000) if ended else None
        self._client.set_terminated(self._run_id, status, end_time)
        if faults:
            raise faults[0]
