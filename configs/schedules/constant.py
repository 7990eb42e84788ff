"""The learning rate stays."""

from typing import Literal

from manyfaces.configs.schedules.schedule import Place, Schedule


class Constant(Schedule):
    """The largest learning rate to the end."""

    kind: Literal["constant"] = "constant"

    def factor(self, place: Place) -> float:
        return 1.0
