"""The one configuration tree. Every field has a range, a unit in its name where it has one, and a
sentence under it.

A section is a file in `sections/`, a family of kinds a folder: `backbones`, `margins`,
`not_finite`, `objectives`, `optimizers`, `orders`, `transforms`. `manyfaces.configs.load` makes the
tree from YAML and `path.to.key=value` words.
"""

from collections.abc import Iterator

from pydantic import model_validator

from manyfaces.configs.adapters.adapter import Adapter
from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.errors import UserError
from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import Node
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.objective import Objective
from manyfaces.configs.optimizers.adamw import AdamW
from manyfaces.configs.optimizers.optimizer import Group, Optimizer
from manyfaces.configs.optimizers.sgd import SGD
from manyfaces.configs.schedules.schedule import Schedule
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.sections.cluster import Cluster, Elastic
from manyfaces.configs.sections.data import Data
from manyfaces.configs.sections.engine import Engine
from manyfaces.configs.sections.evaluation import Evaluation
from manyfaces.configs.sections.head import Head, Rows
from manyfaces.configs.sections.run import Run
from manyfaces.configs.sections.tracking import Tracking
from manyfaces.configs.sections.train import Train
from manyfaces.configs.transforms.transform import Transform
from manyfaces.configs.urls import url_of

__all__ = [
    "SGD",
    "AdamW",
    "Adapter",
    "Backbone",
    "Cluster",
    "Config",
    "Data",
    "Elastic",
    "Engine",
    "Group",
    "Head",
    "Node",
    "Objective",
    "Optimizer",
    "Rows",
    "Schedule",
    "Train",
    "Transform",
    "UserError",
]


class Config(Node):
    """The whole tree."""

    run: Run = Run()
    """The run's name, its place and its seed."""
    data: Data = Data()
    """What is trained on, in which order, and how each image is shown."""
    model: Backbone
    """The network from images to embeddings."""
    objective: Objective = MarginSoftmax()
    """What is optimised."""
    head: Head = Head()
    """The margin softmax of the objective `margin_softmax`, and its class rows."""
    train: Train = Train()
    """Batches, passes over the data, optimiser, schedule and precision."""
    engine: Engine = Engine()
    """How the network runs; it may change when a run is resumed."""
    checkpoint: Checkpoint = Checkpoint()
    """How often checkpoints are written, and which of them are kept."""
    tracking: Tracking = Tracking()
    """What MLflow is told."""
    evaluation: Evaluation = Evaluation()
    """What a run is scored by, and when."""
    cluster: Cluster = Cluster()
    """Where the workers run."""

    @property
    def has_head(self) -> bool:
        """Whether the objective has class centres."""
        return "head" in self.objective.state_names()

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        patience_s = {"data.store_patience_s": self.data.store_patience_s}
        if url_of(self.run.dir) is not None:
            patience_s["checkpoint.store_patience_s"] = self.checkpoint.store_patience_s
        for key, seconds in patience_s.items():
            if seconds >= self.cluster.step_timeout_s:
                raise ValueError(
                    f"{key} {seconds:g} is not below cluster.step_timeout_s "
                    f"{self.cluster.step_timeout_s:g}, which would end the worker first"
                )
        self._check_best()
        if not self.has_head:
            self.head.check_unused(str(self.objective.word()))
        for kind in _kinds(self):
            kind.check(self)
        return self

    def _check_best(self) -> None:
        """Raise `ValueError` where steps are scored that have no checkpoint to keep, or none is."""
        best, scored, saved = (
            self.checkpoint.best,
            self.evaluation.every_steps,
            self.checkpoint.every_steps,
        )
        if best is None or (scored > 0 and scored % saved == 0):
            return
        raise ValueError(
            "checkpoint.best compares the checkpoints that are evaluated: evaluation.every_steps "
            f"{scored} is not a multiple of checkpoint.every_steps {saved} above 0; set it to "
            f"{max(1, round(scored / saved)) * saved}"
        )


def _kinds(value: object) -> Iterator[Kind]:
    """Every kind that was chosen in a part of the tree."""
    if isinstance(value, Kind):
        yield value
    if isinstance(value, Config):
        children = [value.data, value.model, value.objective, value.train, value.evaluation]
        children += [value.head] if value.has_head else []
    elif isinstance(value, Node):
        children = [getattr(value, name) for name in type(value).model_fields]
    else:
        children = list(value) if isinstance(value, tuple) else []
    for child in children:
        yield from _kinds(child)
