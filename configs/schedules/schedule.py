"""The family of schedules: how the learning rate falls over a run."""

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import NonNegativeFloat

from manyfaces.configs.kinds import Kind


@dataclass(frozen=True)
class Place:
    """Where in a run a step begins."""

    share: float
    """Samples behind the warm-up, as a share of all that there are behind it: 0 to 1."""
    epoch: float
    """Passes over the dataset since the run began, the warm-up among them."""


class Schedule(Kind):
    """How the learning rate falls, once it has risen over `train.warmup_epochs`. It is a function
    of the samples seen, so that neither the number of workers nor a resume changes it.

    A kind says by which factor the largest learning rate is multiplied; nothing is built of it.
    """

    folder: ClassVar[str] = "manyfaces.configs.schedules"
    config_key: ClassVar[str] = "train.schedule"

    least_lr: NonNegativeFloat = 0.0
    """Learning rate towards which it falls; it may not be above the optimiser's `lr`."""

    def factor(self, place: Place) -> float:
        """From 1, the largest learning rate, to 0, the least."""
        raise NotImplementedError

    def learning_rate(self, largest: float, place: Place) -> float:
        """The learning rate of a step behind the warm-up."""
        return self.least_lr + (largest - self.least_lr) * self.factor(place)

    def check(self, config: Any) -> None:
        if self.least_lr > config.train.optimizer.lr:
            raise ValueError(
                f"train.schedule.least_lr {self.least_lr:g} is above train.optimizer.lr "
                f"{config.train.optimizer.lr:g}; set it to at most that"
            )


def learning_rate(
    schedule: Schedule, largest: float, position: int, warmup: int, total: int, num_images: int
) -> float:
    """The learning rate of the step that begins at `position` of `total` samples: from 0 to
    `largest` in a line over `warmup` samples, then as the schedule says. An epoch has `num_images`
    samples."""
    if position < warmup:
        return largest * position / warmup
    share = min((position - warmup) / max(total - warmup, 1), 1.0)
    return schedule.learning_rate(largest, Place(share, position / num_images))
