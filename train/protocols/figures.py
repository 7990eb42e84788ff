"""Parts of a result that are worked out apart, and put together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from manyfaces.train.evaluation.result import Curve, Histogram, Table


@dataclass(frozen=True)
class Figures:
    """What one task of a protocol comes to; the fields are those of a `Result`."""

    scalars: Mapping[str, float | None]
    counts: Mapping[str, int]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    def __or__(self, other: "Figures") -> "Figures":
        return Figures(
            {**self.scalars, **other.scalars},
            {**self.counts, **other.counts},
            {**self.intervals, **other.intervals},
            {**self.curves, **other.curves},
            {**self.histograms, **other.histograms},
            {**self.tables, **other.tables},
        )
