"""Section `tracking`: the record in MLflow."""

from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from manyfaces.configs.node import NOTHING, Decides, Node


class Tracking(Node):
    """What MLflow is told; it may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    uri: str | None = None
    """MLflow tracking server; default is `MLFLOW_TRACKING_URI`, else sqlite in the runs folder. Its
    user and password are best set as `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`; in
    this or any other URL they are hidden in all that is written or shown."""
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = "manyfaces"
    """MLflow experiment that the run belongs to."""
    log_every_steps: PositiveInt = 10
    """Steps between rows of metrics."""
    log_samples: bool = False
    """Whether each rank writes down in `samples/` of the run's folder which samples it trained on
    at each step; that takes some 10 bytes a sample."""
