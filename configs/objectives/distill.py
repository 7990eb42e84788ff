"""Objective distill: a trained network teaches."""

from typing import Annotated, Any, ClassVar, Literal

from manyfaces.configs.node import FILE, NOTHING, PATH, WEIGHTS
from manyfaces.configs.objectives.objective import Objective


class Distill(Objective):
    """A trained network, the teacher, shows which embedding each image should have; it needs no
    labels. Alone, or beside a margin softmax in a `sum`. Where the teacher's embeddings have
    another width, a linear map from the student's is trained with it, and evaluation and export
    leave the map out. The plan does not count the teacher: its weights, and its forward pass."""

    kind: Literal["distill"] = "distill"
    target: ClassVar[str] = "manyfaces.train.objectives.distill.Distill"

    teacher: Annotated[str, NOTHING, PATH, WEIGHTS, FILE]
    """A run, a checkpoint or an exported file; the SHA-256 of its weights is a part of the run's
    identity."""
    loss: Literal["cosine", "mse"] = "cosine"
    """`cosine` is 1 - the cosine between both embeddings, `mse` the mean over their numbers of the
    squared difference, lengths included."""

    def arguments(self) -> dict[str, Any]:
        return {"settings": self}
