"""The learning rate drops after some passes over the dataset."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from manyfaces.configs.schedules.schedule import Place, Schedule


class Steps(Schedule):
    """The learning rate is multiplied by `by` after each of these passes over the dataset, as most
    published recipes for CASIA-WebFace and MS1MV2 have it; the warm-up counts as passes too."""

    kind: Literal["steps"] = "steps"

    at_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """After how many passes, in rising order: [20, 28, 32]."""
    by: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The factor of each drop."""

    @field_validator("at_epochs")
    @classmethod
    def _rising(cls, epochs: tuple[float, ...]) -> tuple[float, ...]:
        if list(epochs) != sorted(set(epochs)):
            raise ValueError("has to rise from one to the next")
        return epochs

    def factor(self, place: Place) -> float:
        return float(self.by ** sum(place.epoch >= epoch for epoch in self.at_epochs))

    def check(self, config: Any) -> None:
        super().check(config)
        if self.at_epochs[-1] >= config.train.epochs:
            raise ValueError(
                f"train.schedule.at_epochs has {self.at_epochs[-1]:g}, and the run ends after "
                f"{config.train.epochs:g} epochs (train.epochs); leave it out"
            )
