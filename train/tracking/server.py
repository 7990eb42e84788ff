"""A run in MLflow that continues the run of a folder: found, made or restored, and sent to. The one
file that knows mlflow.

Whatever is sent may be sent again without doubles. Methods raise what MLflow's client raises.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from manyfaces.configs import schema
from manyfaces.configs.redact import redact
from manyfaces.configs.urls import url_of
from manyfaces.train.metric_names import EVALUATION_GROUP, fit_name
from manyfaces.train.tracking.attempts import Attempt
from manyfaces.train.tracking.find import Finder
from manyfaces.train.tracking.model import ExportedModel
from manyfaces.train.tracking.place import keep

ATTEMPT = "manyfaces.attempt"
"""The tag that finds an attempt among the runs below its run: when it began, in milliseconds."""
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
STEP = "manyfaces.step"
BATCH = 1000  # MLflow's limit of one log_batch
BATCH_PARAMS = 100
DIGEST = 36  # characters that MLflow takes of a dataset's digest
MOST_ATTEMPTS = 10_000

Measured = tuple[str, float, float, int]
"""Name, value, seconds since 1970 and step of a number."""


class Server:
    """The run's place on an MLflow server. It is looked for, and where need be made, when this is
    made; `note` is told what was found deleted, and what was done about it."""

    def __init__(
        self, folder: Path, config: schema.Config, uri: str, note: Callable[[str], None]
    ) -> None:
        import mlflow

        # Importing MLflow sets the level of its loggers: this has to come after it.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.config = config
        self._client: Any = mlflow.MlflowClient(uri)
        self._attempts: dict[str, Any] | None = None
        run = Finder(self._client, folder, config, uri, note).run()
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        keep(folder, uri, self.run_id, self.experiment_id)
        self._client.update_run(self.run_id, status="RUNNING")
        self._params = set(run.data.params)
        self._last_step: dict[str, int] = {m.key: m.step for m in run.data.to_proto().metrics}
        """By metric: steps that are measured again after a resume are not sent twice."""
        self._steps: dict[str, set[int]] = {}
        """Those that an evaluation's metric has, which may be of any step at any time."""

    def params(self, params: Mapping[str, Any]) -> None:
        """Send those that the run does not have yet: MLflow lets none change."""
        from mlflow.entities import Param

        named = {fit_name(key): str(value)[:500] for key, value in params.items()}
        missing = [Param(key, value) for key, value in named.items() if key not in self._params]
        for start in range(0, len(missing), BATCH_PARAMS):
            batch = missing[start : start + BATCH_PARAMS]
            self._client.log_batch(self.run_id, params=batch)
            self._params |= {param.key for param in batch}

    def metrics(self, measured: Iterable[Measured]) -> None:
        """Send the numbers of steps that MLflow has not got yet."""
        from mlflow.entities import Metric

        metrics = (
            Metric(name, float(value), int(time_s * 1000), step)
            for name, value, time_s, step in measured
            if step > self._last_step.get(name, -1) or self._lacks(name, step)
        )
        while batch := list(islice(metrics, BATCH)):
            self._client.log_batch(self.run_id, metrics=batch)
            for sent in batch:
                self._last_step[sent.key] = max(sent.step, self._last_step.get(sent.key, -1))
                self._steps.get(sent.key, set()).add(sent.step)

    def _lacks(self, name: str, step: int) -> bool:
        """Whether it is a metric of an evaluation, which has no value at this earlier step: any
        checkpoint may be evaluated after later ones were."""
        if not name.startswith(EVALUATION_GROUP):
            return False
        if name not in self._steps:
            history = self._client.get_metric_history(self.run_id, name)
            self._steps[name] = {measured.step for measured in history}
        return step not in self._steps[name]

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._set_tags(self.run_id, tags)

    def datasets(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Have these as inputs of the run, described as the event of a start does."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = [InputTag("mlflow.data.context", "training")]
        inputs = []
        for facts in datasets:
            where = redact(str(facts["path"]))
            kind, url = _source(where)
            profile = {
                "num_rows": facts["images"],
                "num_identities": facts["identities"],
                "num_shards": facts["shards"],
                "bytes": facts["bytes"],
                "share": facts["share"],
                "fingerprint": facts["fingerprint"],
            }
            dataset = Dataset(
                name=where.rstrip("/").rpartition("/")[2][:500] or where,
                digest=facts["fingerprint"][:DIGEST],
                source_type=kind,
                source=json.dumps({"url" if kind == "http" else "uri": url}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, context))
        self._client.log_inputs(self.run_id, datasets=inputs)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Send a file, or a folder's files, as artifacts of this folder."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def json(self, content: Mapping[str, Any], name: str) -> None:
        """Send this as an artifact of that name."""
        self._client.log_dict(self.run_id, dict(content), name)

    def names(self, folder: str) -> set[str]:
        """The names of the artifacts of that folder."""
        return {Path(file.path).name for file in self._client.list_artifacts(self.run_id, folder)}

    def attempt(self, attempt: Attempt, tags: Mapping[str, str]) -> None:
        """Have an attempt as a run below this one, as it stands. One that a person has deleted
        there stays deleted."""
        key = str(round(attempt.started * 1e6))
        if self._attempts is None:
            self._attempts = {run.data.tags.get(ATTEMPT, ""): run.info for run in self._children()}
        info = self._attempts.get(key)
        if info is None:
            known, self._attempts = self._attempts, None  # an answer may be lost: look again then
            info = self._client.create_run(
                self.experiment_id,
                start_time=int(attempt.started * 1000),
                tags={PARENT: self.run_id, ATTEMPT: key, **tags},
                run_name=f"{self.config.run.name} attempt {attempt.number}",
            ).info
            self._attempts = {**known, key: info}
        if info.lifecycle_stage == "deleted" or attempt.ended is None:
            return
        ended = int(attempt.ended * 1000)
        if (info.status, info.end_time) == (attempt.status, ended):
            return  # so that what a person has written there since then stays
        reason = redact(attempt.reason)[:5000]
        self._set_tags(info.run_id, {"manyfaces.end": reason, NOTE: reason})
        self._client.set_terminated(info.run_id, attempt.status, ended)

    def end(self, status: str, end_s: float | None) -> None:
        """The run has ended so, at that time."""
        self._client.set_terminated(self.run_id, status, end_s and int(end_s * 1000))

    def has_model(self, step: int, register: str) -> bool:
        """Whether a version of that registered model is of this run and this step."""
        found = self._client.search_model_versions(f"name = '{register}'")
        wanted = self.run_id, str(step)
        return any((each.run_id, each.tags.get(STEP)) == wanted for each in found)

    def model(self, exported: ExportedModel, register: str) -> None:
        """Log an exported backbone as a model of this run, and register it under that name."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        step = str(exported.step)
        found = self._client.search_logged_models(
            [self.experiment_id], f"source_run_id = '{self.run_id}'"
        )
        model = next((each for each in found if each.tags.get(STEP) == step), None)
        if model is None:
            model = self._client.create_logged_model(
                self.experiment_id,
                name=f"{register}-step-{step}",
                source_run_id=self.run_id,
                tags={STEP: step, "manyfaces.checkpoint": exported.checkpoint},
                model_type="encoder",
            )
        if model.status != LoggedModelStatus.READY:
            with tempfile.TemporaryDirectory(prefix="manyfaces-model-") as folder:
                saved = Path(folder) / "model"
                save_pyfunc(
                    exported,
                    saved,
                    artifact_path=model.artifact_location,
                    run_id=self.run_id,
                    model_uuid=model.model_id,
                    model_id=model.model_id,
                )
                self._client.log_model_artifacts(model.model_id, str(saved))
            outputs = self._client.get_run(self.run_id).outputs
            if model.model_id not in {each.model_id for each in outputs.model_outputs}:
                output = LoggedModelOutput(model.model_id, exported.step)
                self._client.log_outputs(self.run_id, [output])
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if not self._client.search_registered_models(f"name = '{register}'"):
            self._client.create_registered_model(register)
        # Were the model named by its id, MLflow would look for it on the server that is set for the
        # whole process.
        self._client.create_model_version(
            register,
            model.artifact_location,
            run_id=self.run_id,
            tags={STEP: step},
            await_creation_for=0,
            model_id=model.model_id,
        )

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        batch = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(batch), BATCH_PARAMS):
            self._client.log_batch(run_id, tags=batch[start : start + BATCH_PARAMS])

    def _children(self) -> Sequence[Any]:
        from mlflow.entities import ViewType

        found: Sequence[Any] = self._client.search_runs(
            [self.experiment_id],
            f"tags.`{PARENT}` = '{self.run_id}'",
            run_view_type=ViewType.ALL,
            max_results=MOST_ATTEMPTS,
        )
        return found


def save_pyfunc(exported: ExportedModel, folder: Path, **identity: Any) -> None:
    """Write an exported network as a model of MLflow's: a folder with the weights, and with what
    says how they are opened and what goes in and comes out; no code and no pickle. `identity` is
    what the server knows it by."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    height, width = exported.image_hw
    images = TensorSpec(np.dtype(np.uint8), (-1, height, width, 3))
    embeddings = TensorSpec(np.dtype(np.float32), (-1, exported.embedding_dim))
    description = Model(
        signature=ModelSignature(Schema([images]), Schema([embeddings])),
        metadata={"checkpoint": exported.checkpoint, "step": exported.step},
        **identity,
    )
    pyfunc.save_model(
        folder,
        loader_module=exported.loader,
        data_path=str(exported.file),
        mlflow_model=description,
        pip_requirements=[exported.requirement],
    )


def register(folder: Path, name: str, experiment: str, uri: str) -> str:
    """Log a folder of `save_pyfunc` as a model of this experiment, and register it as a version of
    the model of this name, both made where they are not there; returns the version's number."""
    import mlflow
    from mlflow.entities import LoggedModelStatus

    client: Any = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
    model = client.create_logged_model(experiment_id, name=name, model_type="encoder")
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, model.artifact_location, await_creation_for=0, model_id=model.model_id
    )
    return str(version.version)


def _source(where: str) -> tuple[str, str]:
    """The kind that MLflow gives the source of a dataset, and its address."""
    if (url := url_of(where)) is None:
        return "local", where
    scheme = url.partition("://")[0]
    return ("http" if scheme in ("http", "https") else scheme), url
