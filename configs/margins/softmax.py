"""Margin softmax: no margin."""

from typing import ClassVar, Literal

from manyfaces.configs.margins.margin import Margin


class Softmax(Margin):
    """No margin: a baseline, and to warm up labels too noisy for one."""

    kind: Literal["softmax"] = "softmax"
    target: ClassVar[str] = "manyfaces.models.margins.softmax.Softmax"
