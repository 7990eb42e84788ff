"""Figures of identification beside loops that are written from the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manyfaces.train.evaluation.identification import (
    NOBODY,
    OpenSet,
    cmc,
    first_hits,
    open_set_at_or_above,
    open_set_by_element,
    pair_ranks,
    trade_off,
)
from manyfaces.train.evaluation.nearest import Nearest, blocks, exact_search, unit

Q, N = 60, 90


def searches(seed: int, levels: int = 8) -> tuple[NDArray[np.float32], ...]:
    """Best scores of few levels, so that many tie, ranks of first hits, and which are mated."""
    random = np.random.default_rng(seed)
    best = (random.integers(0, levels, Q) / levels).astype(np.float32)
    mated = random.random(Q) < 0.6
    first = np.where(mated, random.integers(0, 4, Q), 0)
    return best, first, mated


def test_the_first_hit_is_that_of_any_entry_of_the_identity() -> None:
    random = np.random.default_rng(0)
    probes, gallery = unit(random.standard_normal((Q, 6))), unit(random.standard_normal((N, 6)))
    label_Q, label_N = random.integers(0, 9, Q), random.integers(0, 7, N)
    label_N[::5] = NOBODY
    found = exact_search(probes, blocks(gallery), 12)
    expected = []
    for probe, label in zip(probes.astype(np.float64), label_Q, strict=True):
        order = np.argsort(-(gallery @ probe), kind="stable")[:12]
        hits = [rank for rank, row in enumerate(order, 1) if label_N[row] == label]
        expected.append(hits[0] if hits else 0)
    assert first_hits(found, label_Q, label_N).tolist() == expected
    assert {0, 1} < set(expected)


def test_a_row_that_was_not_found_is_no_hit() -> None:
    found = Nearest(np.array([[0.5, -np.inf]], np.float32), np.array([[0, -1]]))
    assert first_hits(found, np.array([3]), np.array([1, 3])).tolist() == [0]
    assert first_hits(found, np.array([NOBODY]), np.array([1, 3])).tolist() == [2]


@given(st.lists(st.integers(0, 30), min_size=1), st.integers(1, 29))
def test_cmc_counts_first_hits_and_never_falls(first: list[int], rank: int) -> None:
    shares = cmc(np.array(first), range(1, 31))
    assert shares[rank - 1] == sum(1 <= each <= rank for each in first) / len(first)
    assert shares == sorted(shares)
    assert shares[-1] == sum(map(bool, first)) / len(first)


def test_no_mated_probe_has_no_rate() -> None:
    assert all(map(math.isnan, cmc(np.array([], np.int64), (1, 5))))


@given(st.integers(0, 200), st.sampled_from([0.3, 0.1, 0.01]))
def test_open_set_by_element_is_the_published_rule(seed: int, fpir: float) -> None:
    best, first, mated = searches(seed)
    maxima = sorted((float(best[row]) for row in range(Q) if not mated[row]), reverse=True)
    threshold = maxima[max(int(len(maxima) * fpir) - 1, 0)]
    hits = sum(bool(mated[row]) and first[row] == 1 and best[row] > threshold for row in range(Q))
    achieved = sum(each >= threshold for each in maxima) / len(maxima)
    found = open_set_by_element(best, first, mated, fpir)
    assert found == pytest.approx(OpenSet(hits / mated.sum(), threshold, achieved))


@given(st.integers(0, 200), st.sampled_from([0.3, 0.1, 0.01]))
def test_open_set_at_or_above_is_the_lowest_threshold_that_keeps_the_rate(
    seed: int, fpir: float
) -> None:
    best, first, mated = searches(seed)
    maxima = [float(best[row]) for row in range(Q) if not mated[row]]
    found = open_set_at_or_above(best, first, mated, fpir)
    if len(maxima) * fpir < 1:
        assert found is None
        return
    assert found is not None
    candidates = sorted({*map(float, best), math.inf})
    rates = [sum(each >= threshold for each in maxima) / len(maxima) for threshold in candidates]
    lowest = next(t for t, rate in zip(candidates, rates, strict=True) if rate <= fpir + 1e-9)
    hits = sum(bool(mated[row]) and first[row] == 1 and best[row] >= lowest for row in range(Q))
    assert found.tpir == hits / mated.sum()
    assert found.fpir == sum(each >= lowest for each in maxima) / len(maxima)
    assert found.fpir <= fpir


def test_an_impostor_at_rank_one_above_the_threshold_is_no_hit() -> None:
    """Probes 0 to 2 are mated; the first entry of probe 1 is another's, at the highest score."""
    best = np.array([0.9, 0.95, 0.4, 0.5, 0.3], np.float32)
    first, mated = np.array([1, 2, 1, 0, 0]), np.array([True, True, True, False, False])
    found = open_set_by_element(best, first, mated, 0.1)  # 2 x 0.1 < 1: the highest element
    assert found == pytest.approx((1 / 3, 0.5, 0.5))
    assert open_set_at_or_above(best, first, mated, 0.1) is None
    halved = open_set_at_or_above(best, first, mated, 0.5)
    assert halved is not None
    assert (halved.tpir, halved.fpir) == (2 / 3, 0.5)
    assert halved.threshold > 0.3


@pytest.mark.parametrize("mated", [np.zeros(3, bool), np.ones(3, bool)])
def test_open_sets_need_probes_of_both_kinds(mated: NDArray[np.bool_]) -> None:
    best, first = np.ones(3, np.float32), np.ones(3, np.int64)
    assert open_set_by_element(best, first, mated, 0.5) is None
    assert open_set_at_or_above(best, first, mated, 1.0) is None


@given(st.integers(0, 200))
def test_the_trade_off_has_a_point_for_each_rate(seed: int) -> None:
    best, first, mated = searches(seed)
    line = trade_off(best, first, mated)
    expected = []
    for threshold in sorted(set(map(float, best[~mated])), reverse=True):
        hits = (first[mated] == 1) & (best[mated] >= threshold)
        expected.append(((best[~mated] >= threshold).mean(), hits.mean()))
    np.testing.assert_allclose(np.column_stack(line), expected)


def test_megaface_ranks_are_those_of_each_pair_in_turn() -> None:
    random = np.random.default_rng(1)
    probes, others = unit(random.standard_normal((20, 5))), unit(random.standard_normal((40, 5)))
    probes[3], label_Q = others[7], np.array([0, 1, 2, 3] * 5)
    probes[7] = others[7]  # a distractor that equals the probe, and its mate
    found = exact_search(probes, blocks(others), 6)
    expected = []
    for probe in range(20):
        for mate in range(20):
            if mate == probe or label_Q[mate] != label_Q[probe]:
                continue
            score = np.float32(probes[probe].astype(np.float64) @ probes[mate].astype(np.float64))
            against = (others.astype(np.float64) @ probes[probe].astype(np.float64)).astype("f4")
            expected.append(min(int((against >= score).sum()), 6) + 1)
    assert sorted(pair_ranks(probes, label_Q, found.scores_QK).tolist()) == sorted(expected)
    assert {1, 7} < set(expected)
    assert len(pair_ranks(probes[:4], label_Q[:4], found.scores_QK[:4])) == 0
