"""The learning rate falls as a power of what is left of the run."""

from typing import Literal

from pydantic import PositiveFloat

from manyfaces.configs.schedules.schedule import Place, Schedule


class Polynomial(Schedule):
    """(1 - t)^power, where t goes from 0 to 1 over the samples behind the warm-up, as InsightFace's
    `PolynomialLRWarmup` has it."""

    kind: Literal["polynomial"] = "polynomial"

    power: PositiveFloat = 2.0
    """1 is a straight line; InsightFace uses 2."""

    def factor(self, place: Place) -> float:
        return float((1 - place.share) ** self.power)
