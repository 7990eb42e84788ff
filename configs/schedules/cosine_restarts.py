"""The learning rate falls along half a wave again and again."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from manyfaces.configs.schedules.schedule import Place, Schedule


class CosineRestarts(Schedule):
    """Half a wave from the largest learning rate to the least, which then starts anew and takes
    longer (SGDR, arXiv 1608.03983); FRoundation (arXiv 2410.23831) fine-tunes so, after five epochs
    at the largest. It need not end at the least."""

    kind: Literal["cosine_restarts"] = "cosine_restarts"

    constant_epochs: NonNegativeFloat = 5.0
    """Passes over the dataset before the first fall, the warm-up among them."""
    first_epochs: PositiveFloat = 5.0
    """Passes that the first fall takes."""
    longer_by: Annotated[float, Field(ge=1)] = 2.0
    """How many times as long as the fall before it each one takes."""

    def factor(self, place: Place) -> float:
        left, length = place.epoch - self.constant_epochs, self.first_epochs
        if left < 0:
            return 1.0
        while left >= length:
            left, length = left - length, length * self.longer_by
        return (1 + math.cos(math.pi * left / length)) / 2

    def check(self, config: Any) -> None:
        super().check(config)
        if self.constant_epochs >= config.train.epochs:
            raise ValueError(
                f"train.schedule.constant_epochs {self.constant_epochs:g} is the whole run "
                f"(train.epochs {config.train.epochs:g}); set a smaller one, or kind constant"
            )
