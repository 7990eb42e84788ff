"""Objective margin_softmax: class centres, and a margin (section `head`)."""

from typing import ClassVar, Literal

from manyfaces.configs.class_centres import ClassCentres


class MarginSoftmax(ClassCentres):
    """Identities are classes: the default. Margin and class rows are set in section `head`."""

    kind: Literal["margin_softmax"] = "margin_softmax"
    target: ClassVar[str] = "manyfaces.train.objectives.margin_softmax.MarginSoftmax"
