"""Axes of the report's charts: ticks are round and where they say, and thinned lines keep their
extremes."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from manyfaces.train.report.scales import (
    Scale,
    number_text,
    scale_over,
    tick_step,
    tick_texts,
)
from manyfaces.train.report.thinning import thinned

NUMBERS = st.floats(-1e9, 1e9, allow_subnormal=False)
POSITIVE = st.floats(1e-9, 1e9, allow_subnormal=False)


def digits(number: float) -> float:
    """The number without its power of ten."""
    return number / 10 ** math.floor(math.log10(abs(number)) + 1e-9)


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(3, 8))
def test_a_rounded_axis_holds_all_values_and_ends_at_its_ticks(
    values: list[float], most: int
) -> None:
    assume(max(values) - min(values) > 1e-6 * max(map(abs, values)) or len(set(values)) == 1)
    scale = scale_over(values, round_to=most)
    ticks, room = scale.ticks(most), 1e-6 * (scale.high - scale.low)
    assert scale.low <= min(values) + room
    assert max(values) <= scale.high + room
    assert 2 <= len(ticks) <= most
    assert ticks[0] == pytest.approx(scale.low, abs=room)
    assert ticks[-1] == pytest.approx(scale.high, abs=room)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert any(math.isclose(digits(steps[0]), step, rel_tol=1e-6) for step in (1, 2, 2.5, 5, 10))


@given(POSITIVE, st.integers(2, 10))
def test_no_smaller_round_step_would_do(span: float, most: int) -> None:
    step = tick_step(span, most)
    powers = [10.0 ** (math.floor(math.log10(step)) + shift) for shift in (-1, 0)]
    smaller = [f * p for f in (1, 2, 2.5, 5) for p in powers if f * p < step * (1 - 1e-6)]
    assert step * (most - 1) >= span * (1 - 1e-6)
    assert max(smaller) * (most - 1) < span


@given(st.lists(POSITIVE, min_size=2, max_size=20, unique=True), st.booleans())
def test_places_are_in_order_and_between_the_ends(values: list[float], log: bool) -> None:
    scale = scale_over(values, log=log)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] == pytest.approx(0)
    assert places[-1] == pytest.approx(1)


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    scale = scale_over([2e-4, 0.7], log=True, round_to=5)
    assert (scale.low, scale.high) == pytest.approx((1e-4, 1))
    assert scale.ticks(5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert scale.place(1e-2) == pytest.approx(0.5)
    assert tick_texts(scale.ticks(5), log=True) == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]


def test_values_that_no_axis_can_show_do_not_move_it() -> None:
    assert scale_over([1, math.nan, math.inf, 3]) == Scale(1, 3)
    assert scale_over([-1, 0, 1e-3, 1], log=True) == Scale(1e-3, 1, True)
    assert scale_over([]) == Scale(0, 1)
    alike = scale_over([5, 5])
    assert alike.low < 5 < alike.high


@pytest.mark.parametrize(
    ("ticks", "form", "texts"),
    [
        ([0, 0.5, 1], "", ["0.0", "0.5", "1.0"]),
        ([0, 0.25, 0.5], "", ["0.00", "0.25", "0.50"]),
        ([0.6, 0.7], ".2%", ["60%", "70%"]),
        ([-1, 0, 1], "", ["\N{MINUS SIGN}1", "0", "1"]),
        ([0, 5_000], "", ["0", "5,000"]),
        ([0, 1e-7], "", ["0", "1e-07"]),
    ],
)
def test_ticks_read_alike(ticks: list[float], form: str, texts: list[str]) -> None:
    assert tick_texts(ticks, form=form) == texts


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (12_345, "", "12,345"),
        (0.123456, "", "0.12346"),
        (3.0, "", "3"),
        (0.5, ".1%", "50.0%"),
        (123_456.7, "", "123,457"),
        (1e-9, "", "1e-09"),
    ],
)
def test_numbers_read_well(value: float, form: str, text: str) -> None:
    assert number_text(value, form) == text


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=500),
    st.integers(4, 60),
)
def test_a_thinned_line_keeps_its_extremes_and_ends(values: list[float], most: int) -> None:
    kept = thinned(values, most).tolist()
    assert len(kept) <= max(most, 4)
    assert kept == sorted(set(kept))
    assert {kept[0], kept[-1]} == {0, len(values) - 1}
    left = [values[number] for number in kept]
    assert (min(left), max(left)) == (min(values), max(values))
    if len(values) <= most:
        assert kept == list(range(len(values)))


def test_a_spike_of_one_point_stays_where_it_was() -> None:
    values = np.zeros(100_000)
    values[31_415] = 1
    assert 31_415 in thinned(values)
