"""Axes: from numbers to places on a chart, where its ticks are, and how numbers read there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = "\N{MINUS SIGN}"
PERCENT = "%"
"""Ends the format of a number that is shown in percent."""


@dataclass(frozen=True)
class Scale:
    """One axis, from `low` to `high`; with `log` both are above zero."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where the value stands: 0 at `low`, 1 at `high`."""
        low, high, here = self.low, self.high, value
        if self.log:
            low, high, here = math.log10(low), math.log10(high), math.log10(value)
        return (here - low) / (high - low)

    def takes(self, value: float) -> bool:
        """Whether the axis can show the value at all."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self, most: int) -> list[float]:
        """At most so many round numbers within the axis, and at least two of them where it has
        two; powers of ten on a logarithmic axis that spans two of them."""
        if self.log and (powers := _powers(self.low, self.high, most)):
            return powers
        step = tick_step(self.high - self.low, most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        ticks = [number * step for number in range(first, last + 1)]
        return [tick for tick in ticks if not self.log or tick > 0]


def scale_over(values: Iterable[float], *, log: bool = False, round_to: int = 0) -> Scale:
    """The axis that shows all of the values that it can.

    With `round_to` it begins and ends at round numbers, which that many ticks would have. Values
    that are all the same get room on both sides; without any it goes from 0 to 1, or from 0.1 to 1.
    """
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not known:
        return Scale(0.1 if log else 0.0, 1.0, log)
    low, high = min(known), max(known)
    if log:
        if round_to or low == high:
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return Scale(low, high, True) if low < high else Scale(low / 10, high * 10, True)
    if low == high:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    return _rounded(low, high, round_to) if round_to else Scale(low, high)


def _rounded(low: float, high: float, most: int) -> Scale:
    """The axis that ends at its outer ticks, of which it has at most so many, 3 or more: with two
    it could not go across zero."""
    step = tick_step(high - low, most)
    while True:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        # Ends that were moved outwards may take a larger step, which moves them again.
        wider = tick_step((last - first) * step, most)
        if wider <= step * (1 + 1e-9):
            return Scale(first * step, last * step)
        step = wider


def tick_step(span: float, most: int) -> float:
    """The smallest round step, 1, 2, 2.5 or 5 times a power of ten, of which `most` ticks cover the
    span."""
    least = span / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def _powers(low: float, high: float, most: int) -> list[float]:
    """Powers of ten from `low` to `high`, evenly left out where there are too many; none where
    fewer than two fit."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last <= first:
        return []
    every = math.ceil((last - first + 1) / most)
    return [10.0**power for power in range(first, last + 1, every)]


def tick_texts(ticks: Sequence[float], log: bool = False, form: str = "") -> list[str]:
    """The ticks as people read them, all with the same decimals; `form` ending with `%` shows
    percent. On a logarithmic axis far powers of ten are written as such."""
    if form.endswith(PERCENT):
        return [f"{text}%" for text in tick_texts([100 * tick for tick in ticks])]
    if log and ticks and (min(ticks) < 0.01 or max(ticks) > 10_000):
        return [_power_text(tick) for tick in ticks]
    largest = max(map(abs, ticks), default=0.0)
    if largest and not 1e-4 <= largest < 1e7:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(map(_decimals, ticks), default=0)
    return [f"{tick:,.{decimals}f}".replace("-", _MINUS) for tick in ticks]


def _decimals(value: float) -> int:
    """The decimals that it takes to write the number to four digits."""
    text = f"{value:.4g}"
    mantissa, _, exponent = text.partition("e")
    return max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)


def _power_text(value: float) -> str:
    power = math.floor(math.log10(value) + 1e-9)
    factor = value / 10.0**power
    times = "" if math.isclose(factor, 1) else f"{factor:.3g}·"
    return f"{times}10{str(power).translate(_SUPERSCRIPTS)}"


def number_text(value: float, form: str = "") -> str:
    """One number as people read it: by its format where it has one, else to five digits."""
    if form:
        return format(value, form)
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
