"""Which run of an MLflow server continues the run in a folder: it is found again, restored, or
made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from manyfaces.configs import schema
from manyfaces.configs.redact import redact
from manyfaces.train.record import EVENTS, read_rows
from manyfaces.train.tracking.place import mlflow_run, tag_value

TAG = "manyfaces.run"
"""The tag that finds a run in MLflow again; its value is a UUID that `mlflow.json` keeps."""
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag of an experiment that says which pages show it, and its value for model training."""


class Finder:
    """Looks on the server of this client; `note` is told what was found deleted, and what was done
    about it."""

    def __init__(
        self,
        client: Any,
        folder: Path,
        config: schema.Config,
        uri: str,
        note: Callable[[str], None],
    ) -> None:
        self._client, self.folder, self.config = client, folder, config
        self.uri, self._note = uri, note

    def run(self) -> Any:
        """The run of MLflow's, which is made where there is none yet."""
        return self._known_run() or self._tagged_run()

    def _known_run(self) -> Any:
        """The run that was written to last, restored if it was deleted; None where it is gone."""
        known = mlflow_run(self.folder) or {}
        if redact(str(known.get("uri", ""))) != redact(self.uri):
            return None
        run_id = known["run_id"]
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._note(f"{self.uri} has no run {run_id} any more: another one gets everything")
            return None
        experiment = self._client.get_experiment(run.info.experiment_id)
        if run.info.lifecycle_stage != "deleted":
            self._mark(experiment)
            return run
        if experiment.name != self.config.tracking.experiment:
            return None
        self._restore(experiment)
        self._mark(experiment)
        if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
            self._client.restore_run(run_id)
            self._note(f"run {run_id} had been deleted in {self.uri}: it is restored")
        return self._client.get_run(run_id)

    def _tagged_run(self) -> Any:
        """The run that bears our tag: one whose making was not answered, else a new one."""
        experiment_id, tag = self._experiment(), tag_value(self.folder)
        found = self._client.search_runs([experiment_id], f"tags.`{TAG}` = '{tag}'", max_results=1)
        if found:
            return self._client.get_run(found[0].info.run_id)
        began = [row["time"] for row in read_rows(self.folder / EVENTS)[:1]]
        return self._client.create_run(
            experiment_id,
            start_time=int(began[0] * 1000) if began else None,
            tags={TAG: tag},
            run_name=self.config.run.name,
        )

    def _experiment(self) -> str:
        """The id of the run's experiment, which is made or restored where it has to be."""
        name = self.config.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            self._restore(experiment)
            self._mark(experiment)
            return str(experiment.experiment_id)
        artifacts = (
            (self.folder.parent.resolve() / "mlartifacts").as_uri()
            if self.uri.startswith("sqlite:")
            else None
        )
        return str(
            self._client.create_experiment(name, artifact_location=artifacts, tags={KIND: TRAINING})
        )

    def _mark(self, experiment: Any) -> None:
        """Have the experiment shown as model training, unless it is said to be of another kind."""
        if KIND in experiment.tags:
            return
        try:
            self._client.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
        except Exception as error:
            if getattr(error, "error_code", "") != "PERMISSION_DENIED":
                raise  # who may not write to experiments may still write runs

    def _restore(self, experiment: Any) -> None:
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
            self._note(
                f"experiment {experiment.name} had been deleted in {self.uri}: it is restored, "
                "with its runs; tracking.experiment names another one"
            )
