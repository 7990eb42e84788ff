"""A rank is told to be slow once, when it has been for some time, with what makes it so; equal
ranks never are."""

import random

import pytest

from manyfaces.train.slow_ranks import SlowRanks, slowest

EQUAL = {"data": 0.1, "forward": 0.7}


def own(num_ranks: int, **slow: float) -> list[dict[str, float]]:
    """Equal ranks, but for the last one."""
    return [*[dict(EQUAL) for _ in range(num_ranks - 1)], {**EQUAL, **slow}]


def looked(watch: SlowRanks, times: list[dict[str, float]], windows: int, step_s: float = 2.0):
    return [told for _ in range(windows) for told in watch.look(10, times, step_s)]


def test_a_rank_whose_data_is_late_is_told_once_and_once_that_it_keeps_up_again() -> None:
    watch = SlowRanks([f"node-{rank}" for rank in range(8)])
    assert looked(watch, own(8), 5) == []
    assert looked(watch, own(8, data=0.72), 2) == []
    (told,) = looked(watch, own(8, data=0.72), 50)
    assert told.line == (
        "rank 7 on node-7 is slow: its own part of a step takes 1.42 s where the median of 8 ranks "
        "is 0.8 s, for 30 steps; most of it in data"
    )
    assert told.facts["rank"] == 7
    assert told.facts["node"] == "node-7"
    assert told.facts["part"] == "data"
    assert looked(watch, own(8), 2) == []
    (told,) = looked(watch, own(8), 50)
    assert told.line.startswith("rank 7 on node-7 keeps up again: 0.80 s a step")
    assert told.facts["slow"] is False


def test_the_part_that_is_beyond_the_others_is_named_not_the_longest() -> None:
    (told,) = looked(SlowRanks(["a", "b"]), own(2, data=0.65), 20)
    assert told.line.endswith("most of it in data")
    (told,) = looked(SlowRanks(["a", "b"]), own(2, forward=1.5), 20)
    assert told.line.endswith("most of it in forward")


def test_equal_ranks_that_waver_are_never_told() -> None:
    watch, draw = SlowRanks(["a"] * 16), random.Random(1)
    for _ in range(2000):
        times = [{p: s * draw.uniform(0.8, 1.2) for p, s in EQUAL.items()} for _ in range(16)]
        assert watch.look(10, times, 2.0) == []


def test_a_rank_that_is_slow_now_and_then_is_not_told() -> None:
    watch = SlowRanks(["a"] * 4)
    assert [looked(watch, own(4, data=3.0 * (i % 3 > 0)), 1) for i in range(300)] == [[]] * 300


def test_between_the_two_bounds_nothing_changes() -> None:
    watch = SlowRanks(["a"] * 4)
    near = own(4, forward=0.7 + 0.8 * 0.35)
    assert looked(watch, near, 50) == []
    assert len(looked(watch, own(4, forward=3.0), 50)) == 1
    assert looked(watch, near, 50) == []


def test_what_costs_a_step_nothing_is_not_told() -> None:
    """Three times the median, and a hundredth of the step."""
    assert looked(SlowRanks(["a"] * 4), [{"data": 0.01}] * 3 + [{"data": 0.03}], 50, 2.0) == []


def test_few_steps_are_not_enough() -> None:
    watch = SlowRanks(["a"] * 4)
    told = [watch.look(1, own(4, data=5.0), 6.0) for _ in range(20)]
    assert [bool(each) for each in told] == [False] * 19 + [True]


def test_ranks_that_need_no_time() -> None:
    assert looked(SlowRanks(["a"] * 2), [{"data": 0.0}] * 2, 10) == []
    assert slowest([{"data": 0.0}] * 2)[0] == 0


@pytest.mark.parametrize(
    ("whole", "expected"),
    [([1.0, 3.0], (1, 3.0)), ([2.0, 1.0, 4.0], (2, 2.0)), ([5.0, 1.0, 1.0, 2.0], (0, 5.0))],
)
def test_the_slowest(whole: list[float], expected: tuple[int, float]) -> None:
    assert slowest([{"data": each} for each in whole]) == expected
