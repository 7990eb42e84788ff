"""What an evaluation gives. Whatever shows or keeps a result reads it here, without knowing the
protocol: metrics, the progress line, tables, `evaluation.json` and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

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
    """A line in a plot."""

    title: str
    x_label: str
    y_label: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    log_x: bool = False


@dataclass(frozen=True)
class Histogram:
    """How often each value occurs, for one or several groups of values."""

    title: str
    x_label: str
    y_label: str
    values: Mapping[str, NDArray[np.floating]]
    """By the name of the group."""


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
    curves: Mapping[str, Curve] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

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

    def summary(self) -> dict[str, Any]:
        """What `evaluation.json` has of it: counts, scalars with their deviations, tables."""
        kept: dict[str, Any] = dict(self.counts)
        for quantity in self.quantities:
            kept[quantity.name] = finite(self.scalars[quantity.name])
            if quantity.name in self.deviations:
                kept[f"{quantity.name}_std"] = finite(self.deviations[quantity.name])
        tables = {
            name: {row: _cells(cells) for row, cells in table.items()}
            for name, table in self.tables.items()
        }
        return kept | tables


def finite(value: float | None) -> float | None:
    """The value as Python's own number; None for NaN and infinities, which JSON does not have."""
    return float(value) if value is not None and math.isfinite(value) else None


def _cells(
    cells: float | Mapping[str, float | None] | None,
) -> float | dict[str, float | None] | None:
    if isinstance(cells, Mapping):
        return {column: finite(value) for column, value in cells.items()}
    return finite(cells)


def metric(name: str, quantity: Quantity) -> str:
    """What a quantity of the result of this name is called in the record."""
    return f"{name}/{quantity.name}"
