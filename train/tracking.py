"""MLflow as a mirror of the run's own record, off the step's path. The one file that knows mlflow.

A thread of the process that launched the run reads `metrics.jsonl` and sends what the server does
not have yet. A server that is away costs the run nothing: the record catches up, in this session or
a later one, without doubles.
"""

import json
import logging
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from manyfaces.configs import schema
from manyfaces.configs.files import write_atomic
from manyfaces.configs.redact import redact
from manyfaces.train.record import METRICS, read_rows

RUN_FILE = "mlflow.json"
Status = Literal["FINISHED", "FAILED", "KILLED"]
BATCH = 1000  # MLflow's limit of one log_batch


def tracking_uri(config: schema.Config) -> str:
    """The server of the configuration, else of the environment, else sqlite beside the runs."""
    default = f"sqlite:///{Path(config.run.dir).resolve() / 'mlflow.db'}"
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def mlflow_run(folder: Path) -> dict[str, Any] | None:
    """Which MLflow run continues the run in this folder, if there is one; none where the file that
    says so holds anything else."""
    try:
        told = json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    fits = isinstance(told, dict) and all(isinstance(told.get(k), str) for k in ("uri", "run_id"))
    return told if fits else None


class Mirror:
    """Mirrors one run into MLflow; the same MLflow run is continued when the run is resumed."""

    def __init__(
        self, folder: Path, config: schema.Config, params: dict[str, Any], period_s: float = 5.0
    ) -> None:
        self.folder, self.config, self.params, self.period_s = folder, config, params, period_s
        self.uri = tracking_uri(config)
        self.problem = ""
        """Why the server does not have everything; "" when it does."""
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
            self.problem = redact(f"no answer from {self.uri} in {timeout_s:.0f} s")
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
            try:
                self._send()
                if ended:
                    self._finish()
                self.problem = ""
            except (
                Exception
            ) as error:  # whatever a server or its client raises must not reach the run
                self.problem = redact(
                    f"{self.uri}: {type(error).__name__}: "
                    f"{str(error).splitlines()[0] if str(error) else ''}"
                )
            if ended:
                return

    def _connect(self) -> None:
        import mlflow

        # Importing MLflow sets the level of its loggers: this has to come after it.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        client = mlflow.MlflowClient(self.uri)
        known = mlflow_run(self.folder) or {}
        if redact(known.get("uri", "")) == redact(self.uri):
            run_id = known["run_id"]
            client.update_run(run_id, status="RUNNING")
            for key in client.get_run(run_id).data.metrics:
                self._last_step[key] = max(m.step for m in client.get_metric_history(run_id, key))
        else:
            name = self.config.tracking.experiment
            experiment = client.get_experiment_by_name(name)
            artifacts = (
                (Path(self.config.run.dir).resolve() / "mlartifacts").as_uri()
                if self.uri.startswith("sqlite:")
                else None
            )
            experiment_id = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(name, artifact_location=artifacts)
            )
            run_id = client.create_run(experiment_id, run_name=self.config.run.name).info.run_id
            params = [mlflow.entities.Param(k, str(v)[:500]) for k, v in self.params.items()]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        told = {"uri": redact(self.uri), "run_id": run_id}
        write_atomic(self.folder / RUN_FILE, json.dumps(told))
        self._client, self._run_id = client, run_id

    def _send(self) -> None:
        if self._client is None:
            self._connect()
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in read_rows(self.folder / METRICS)
            for key, value in row.items()
            if key not in ("step", "time") and row["step"] > self._last_step.get(key, -1)
        ]
        for start in range(0, len(metrics), BATCH):
            batch = metrics[start : start + BATCH]
            self._client.log_batch(self._run_id, metrics=batch)
            self._last_step |= {m.key: m.step for m in batch}

    def _finish(self) -> None:
        status, artifacts = self._outcome
        for path in artifacts:
            if path.exists():
                self._client.log_artifact(
                    self._run_id,
                    str(path),
                    artifact_path="plots" if path.suffix == ".png" else None,
                )
        self._client.set_terminated(self._run_id, status)
