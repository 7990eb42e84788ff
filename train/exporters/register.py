"""An exported model in MLflow's registry."""

import os
from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.tracking import Tracking
from manyfaces.train.exporters.graph import quiet
from manyfaces.train.tracking.place import tracking_uri
from manyfaces.train.tracking.server import register

_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Registry:
    """Where a model is registered."""

    name: str
    """Of the registered model."""
    uri: str
    experiment: str

    @classmethod
    def of(cls, name: str, config: Config | None) -> "Registry":
        """Where the run is recorded or, without a run, at `MLFLOW_TRACKING_URI`. Raises `UserError`
        where neither says a place."""
        if config is not None:
            return cls(name, tracking_uri(config), config.tracking.experiment)
        uri = os.environ.get(_VARIABLE, "")
        if not uri:
            raise UserError(f"--register {name}: set {_VARIABLE} to MLflow's server or store")
        return cls(name, uri, Tracking().experiment)

    def take(self, folder: Path) -> str:
        """Register a folder that `--to mlflow` wrote; returns how MLflow calls it. Raises
        `UserError` where the server does not take it."""
        try:
            with quiet():
                version = register(folder, self.name, self.experiment, self.uri)
        except Exception as error:  # MLflow's client raises what its many stores do
            told = " ".join(str(error).split())
            raise UserError(
                f"--register {self.name}: {folder} was written, but not registered: {told}"
            ) from error
        return f"models:/{self.name}/{version}"
