"""Margin custom: one of your own."""

from typing import ClassVar

from manyfaces.configs.kinds import Custom
from manyfaces.configs.margins.margin import Margin


class CustomMargin(Custom, Margin):
    """A margin of your own: a class in a file."""

    base: ClassVar[str] = "manyfaces.models.margins.Margin"
