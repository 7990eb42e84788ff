"""Intervals by the bootstrap, against its definition in loops."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from manyfaces.train.evaluation import bootstrap
from manyfaces.train.evaluation.operating_points import Roc

RNG = np.random.default_rng(5)
SAME = RNG.random(400) < 0.4
FARS = (1e-1, 1e-2, 1e-3)
SCORES = np.round(RNG.normal(SAME * 1.0, 0.6), 2)
PEOPLE = RNG.integers(0, 25, (400, 2))
PEOPLE[SAME, 1] = PEOPLE[SAME, 0]
PEOPLE[~SAME & (PEOPLE[:, 0] == PEOPLE[:, 1]), 1] += 25


def figures(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> list[float]:
    roc = Roc.of(scores, same)
    point = roc.conservative(0.1)
    assert point is not None
    return [roc.auc, roc.eer, point.tar]


def by_loops(people: NDArray[np.int64] | None, replicates: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(99)
    genuine, impostors = np.flatnonzero(SAME), np.flatnonzero(~SAME)
    known = []
    for _ in range(replicates):
        if people is None:
            drawn = [*rng.choice(genuine, len(genuine)), *rng.choice(impostors, len(impostors))]
        else:
            every = np.unique(people)
            times = dict.fromkeys(every.tolist(), 0)
            for person in rng.choice(every, len(every)).tolist():
                times[person] += 1
            drawn = []
            for pair, (first, second) in enumerate(people.tolist()):
                together = times[first] if first == second else times[first] * times[second]
                drawn += [pair] * together
        known.append(figures(SCORES[drawn], SAME[drawn]))
    low, high = np.quantile(known, [0.025, 0.975], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@pytest.mark.parametrize("people", [None, PEOPLE], ids=["pairs", "identities"])
def test_intervals_are_those_of_the_definition(people: NDArray[np.int64] | None) -> None:
    found = bootstrap.roc_intervals(SCORES, SAME, [0.1], people, replicates=2000)
    expected = by_loops(people, 2000)
    for each, wanted in zip((found.auc, found.eer, found.tar[0.1]), expected, strict=True):
        # Two sets of 2,000 replicates differ by chance, by a twentieth of the width or so.
        assert each == pytest.approx(wanted, abs=0.12 * (wanted[1] - wanted[0]))


def test_a_replicate_has_the_figures_of_the_pairs_that_were_drawn() -> None:
    """The sums over cells are the figures themselves: with every pair drawn once."""
    cells = bootstrap._cells(SCORES, SAME)
    counts = [np.bincount(cells[kind], minlength=cells.max() + 1)[None] for kind in (SAME, ~SAME)]
    tar, far = (bootstrap._cumulative(each) for each in counts)
    area, equal, rate = figures(SCORES, SAME)
    assert bootstrap._auc(tar, far)[0] == pytest.approx(area) == roc_auc_score(SAME, SCORES)
    assert bootstrap._eer(tar, far)[0] == pytest.approx(equal)
    assert bootstrap._tar(tar, far, np.array([0.1]))[0, 0] == pytest.approx(rate)


def test_people_with_many_pairs_make_intervals_wider() -> None:
    """20 pairs of each of 20 people are little more than 20 pairs, where people differ."""
    rng = np.random.default_rng(4)
    person = np.concatenate([np.repeat(np.arange(20), 20), np.arange(100, 500)])
    same = np.arange(800) < 400
    scores = rng.normal(same * 2.0, 0.2) + np.where(same, rng.normal(0, 1, 20)[person % 20], 0)
    people = np.stack([person, np.where(same, person, person + 1000)], 1)
    alone = bootstrap.roc_intervals(scores, same, [0.1])
    together = bootstrap.roc_intervals(scores, same, [0.1], people)
    assert np.ptp(together.tar[0.1]) > 2 * np.ptp(alone.tar[0.1])


def test_an_interval_of_a_share_is_that_of_the_binomial_distribution() -> None:
    low, high = bootstrap.mean_interval(np.arange(1000) < 900)
    half = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.003)
    assert bootstrap.mean_interval(np.ones(10)) == (1, 1)


def test_many_pairs_are_scored_in_cells_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    same = rng.random(60_000) < 0.2
    scores = rng.normal(same * 2.0, 1).astype(np.float32)
    fars = [1e-1, 1e-2, 1e-3]
    coarse = bootstrap.roc_intervals(scores, same, fars, replicates=300)
    monkeypatch.setattr(bootstrap, "_MOST_CELLS", 10**6)
    exact = bootstrap.roc_intervals(scores, same, fars, replicates=300)
    for far in fars:
        width = np.ptp(exact.tar[far])
        assert coarse.tar[far] == pytest.approx(exact.tar[far], abs=0.2 * width)
    assert coarse.auc == pytest.approx(exact.auc, abs=1e-3)


def test_it_is_the_same_at_any_time_and_knows_what_it_cannot_tell() -> None:
    one, other = (bootstrap.roc_intervals(SCORES, SAME, FARS, PEOPLE) for _ in range(2))
    assert one[:3] == other[:3]
    assert list(one.tar) == [1e-1, 1e-2]
    nothing = bootstrap.roc_intervals(SCORES, np.ones(400, bool), FARS)
    assert nothing == bootstrap.RocIntervals(None, None, {}, None)


def test_the_band_is_the_interval_of_tar_at_each_far() -> None:
    found = bootstrap.roc_intervals(SCORES, SAME, [0.1])
    assert found.band is not None
    low, high = bootstrap.band_at(found.band, np.array([0.1, 1.0]))
    ends: Sequence[float] = found.tar[0.1]
    assert low is not None
    assert high is not None
    assert (low[0], high[0]) == pytest.approx(ends)
    assert (low[1], high[1]) == (1, 1)
