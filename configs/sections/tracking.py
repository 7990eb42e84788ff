"""Section `tracking`: the record in MLflow."""

from typing import ClassVar

from pydantic import PositiveInt

from manyfaces.configs.node import NOTHING, Decides, Node


class Tracking(Node):
    """What MLflow is told; it may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    uri: str | None = None
    """MLflow tracking server; default is `MLFLOW_TRACKING_URI`, else sqlite in the runs folder. Its
    user and password are best set as `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`; in
    this or any other URL they are hidden in all that is written or shown."""
    experiment: str = "manyfaces"
    """MLflow experiment that the run belongs to."""
    log_every_steps: PositiveInt = 10
    """Steps between rows of metrics."""
