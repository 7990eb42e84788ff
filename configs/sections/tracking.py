"""Section `tracking`: the record in MLflow."""

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

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
    system_metrics_s: NonNegativeFloat = 10.0
    """Seconds between samples of each node's processors, memory, disk, network and GPUs, which
    MLflow has as `system/NODE/...`, at seconds of the run; 0 samples nothing. They are the whole
    node's, in a container too, as psutil and nvidia-ml-py tell them, which come with manyfaces."""
    checkpoint_files: bool = False
    """Whether MLflow is given the files of each checkpoint. It has step, path, size and digest of
    each in any case; all that was sent stays there, whichever `checkpoint.keep` keeps."""
    register_as: Annotated[str, Field(pattern=r"^[\w.\- ]{1,200}$")] | None = None
    """Name of the registered model that gets a version when the run is finished: the backbone as
    `manyfaces export` writes it, which `mlflow.pyfunc.load_model` opens where manyfaces is
    installed, without any pickle."""
