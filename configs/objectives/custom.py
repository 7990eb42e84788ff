"""Objective custom: one of your own."""

from typing import ClassVar

from manyfaces.configs.kinds import Custom
from manyfaces.configs.objectives.objective import Objective


class CustomObjective(Custom, Objective):
    """A loss of your own: a class in a file."""

    base: ClassVar[str] = "manyfaces.train.objectives.objective.Objective"
