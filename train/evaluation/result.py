"""What an evaluation gives. Whatever shows or keeps a result reads it here, without knowing the
protocol: metrics, the progress line, tables, `evaluation.json` and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

Encoded = bytes | NDArray[np.uint8]
"""The bytes of a JPEG or PNG."""

Line = tuple[NDArray[np.floating], NDArray[np.floating]]
"""The x and the y of its points."""

Table = Mapping[str, float | Mapping[str, float | None] | None]
"""From the label of a row to its value, or to its values by column."""


@dataclass(frozen=True)
class Quantity:
    """A number that a protocol gives: its name in the record, and how people read it."""

    name: str
    """In `metrics.jsonl` and MLflow, after the name of the result: `lfw/accuracy`."""
    label: str
    """In the table at the end of a run: `accuracy (10-fold)`."""
    heading: str = ""
    """At the head of a column, where space is short: `10-fold`. Without it the number is recorded,
    but not in the tables that people see."""
    format: str = ".2%"
    brief_format: str = ".1%"
    """In the progress line."""
    unknown: str = "not known"
    """What stands in place of a number that the images cannot tell."""

    def text(self, value: float | None) -> str:
        """The value for people."""
        known = finite(value)
        return self.unknown if known is None else format(known, self.format)


QuantitiesByName = Mapping[str, Sequence[Quantity]]
"""By the name of the result; the first quantity of each is its headline."""


@dataclass(frozen=True)
class Curve:
    """A line in a plot, with its band of uncertainty and further lines where there are any."""

    title: str
    x_label: str
    y_label: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    log_x: bool = False
    log_y: bool = False
    low: NDArray[np.floating] | None = None
    """The lower end of the band at each x."""
    high: NDArray[np.floating] | None = None
    lines: Mapping[str, Line] = field(default_factory=dict)
    """Further lines in the same plot, by their names: one of each group."""


@dataclass(frozen=True)
class Histogram:
    """How often each value occurs, for one or several groups of values."""

    title: str
    x_label: str
    y_label: str
    values: Mapping[str, NDArray[np.floating]]
    """By the name of the group."""
    mark: float | None = None
    """Where a vertical line stands, such as a threshold."""


@dataclass(frozen=True)
class Example:
    """Some images that show what a result is about, such as a pair that was scored wrongly."""

    images: tuple[Encoded, ...]
    label: str
    """What they are, for people."""
    score: float | None = None


@dataclass(frozen=True)
class Result:
    """The outcome of one protocol.

    Raises `UserError` where the scalars are not those that `quantities` describe.
    """

    name: str
    quantities: Sequence[Quantity]
    """Describe the scalars; the first is the headline."""
    scalars: Mapping[str, float | None]
    """By the name of the quantity; None is what the images cannot tell, and NaN is taken for it."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the result is about: `{"pairs": 6000}`."""
    deviations: Mapping[str, float] = field(default_factory=dict)
    """Standard deviations of some of the scalars, by the name of the quantity."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of some of the scalars, by the name of the quantity."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    """By what they are examples of: `hardest genuine pairs`."""
    source: str = ""
    """The configuration of the protocol, as JSON; set by who opened it. It tells two results of one
    name apart."""

    def __post_init__(self) -> None:
        described = {quantity.name for quantity in self.quantities}
        if not described or described != self.scalars.keys():
            raise UserError(
                f"{self.name}: the result has the scalars {', '.join(self.scalars) or 'none'}, "
                f"and its quantities are {', '.join(sorted(described)) or 'none'}; give one of "
                "each name, and at least one"
            )

    @property
    def headline(self) -> Quantity:
        """The quantity that stands for the result where there is space for one number only."""
        return self.quantities[0]

    def metrics(self) -> dict[str, float]:
        """What is recorded of it at a step: the scalars that are known, by `NAME/QUANTITY`."""
        return {
            metric(self.name, quantity): float(value)
            for quantity in self.quantities
            if (value := finite(self.scalars[quantity.name])) is not None
        }


def finite(value: float | None) -> float | None:
    """The value as Python's own number; None for NaN and infinities, which JSON does not have."""
    return float(value) if value is not None and math.isfinite(value) else None


def metric(name: str, quantity: Quantity) -> str:
    """What a quantity of the result of this name is called in the record."""
    return f"{name}/{quantity.name}"
