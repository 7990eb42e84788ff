"""Optimiser sgd: stochastic gradient descent with momentum."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from manyfaces.configs.node import RESULTS, Decides
from manyfaces.configs.optimizers.optimizer import Optimizer


class SGD(Optimizer):
    """What convolutional face models are trained with."""

    kind: Literal["sgd"] = "sgd"
    target: ClassVar[str] = "torch.optim.SGD"

    lr: Annotated[PositiveFloat, RESULTS] = 0.1
    """Largest learning rate."""
    momentum: Annotated[
        float,
        Field(ge=0, lt=1),
        Decides("tensors", by=lambda sgd: "above 0" if sgd.momentum else "0"),
    ] = 0.9
    """Share of the last step that the next one repeats."""
    weight_decay: Annotated[NonNegativeFloat, RESULTS] = 5e-4
    """Decay of the weights, as a part of the gradient."""

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum > 0 else ()
