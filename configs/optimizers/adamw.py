"""Optimiser adamw: Adam with decoupled weight decay (arXiv 1711.05101)."""

from typing import Annotated, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat

from manyfaces.configs.node import RESULTS, Probability
from manyfaces.configs.optimizers.optimizer import Optimizer


class AdamW(Optimizer):
    """What transformers are trained with."""

    kind: Literal["adamw"] = "adamw"
    target: ClassVar[str] = "torch.optim.AdamW"

    lr: Annotated[PositiveFloat, RESULTS] = 1e-3
    """Largest learning rate."""
    betas: Annotated[tuple[Probability, Probability], RESULTS] = (0.9, 0.999)
    """How much of the gradient's mean and of its square's a step keeps."""
    eps: Annotated[PositiveFloat, RESULTS] = 1e-8
    """Added to the root of the square's mean."""
    weight_decay: Annotated[NonNegativeFloat, RESULTS] = 0.1
    """Decay of the weights, apart from the gradient."""

    @property
    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")
