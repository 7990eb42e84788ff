"""Figures of re-identification and re-ranked distances, beside loops over the definitions."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from manyfaces.train.evaluation.nearest import Floats, unit
from manyfaces.train.evaluation.reid import Figures, Labels, Ranking
from manyfaces.train.evaluation.reranking import ReRanked


class Case(NamedTuple):
    scores_QN: NDArray[np.float32]
    queries: Labels
    gallery: Labels


def made(seed: int, levels: int, people: int = 6) -> Case:
    """Scores of few levels, so that many tie."""
    random = np.random.default_rng(seed)
    scores = (random.integers(0, levels, (15, 30)) / levels).astype(np.float32)
    queries = Labels(random.integers(1, people, 15), random.integers(0, 3, 15))
    return Case(scores, queries, Labels(random.integers(0, people, 30), random.integers(0, 3, 30)))


def figures(case: Case, max_rank: int = 50) -> Figures:
    ranking = Ranking(case.gallery, max_rank)
    ranking.add(case.scores_QN[:4], case.queries[:4])
    ranking.add(case.scores_QN[4:], case.queries[4:])
    return ranking.figures()


def by_definition(case: Case, max_rank: int) -> Figures:
    firsts, at_hits, trapezoids, minps, without = [], [], [], [], 0
    for query in range(len(case.scores_QN)):
        identity, camera = case.queries.identity_N[query], case.queries.camera_N[query]
        ranked = []
        for row in sorted(range(30), key=lambda row: (-float(case.scores_QN[query, row]), row)):
            same = case.gallery.identity_N[row] == identity
            if not (same and case.gallery.camera_N[row] == camera):
                ranked.append(bool(same))
        total = sum(ranked)
        if not total:
            without += 1
            continue
        hits, precisions, area, old_precision, last = 0, [], 0.0, 1.0, 0
        for place, match in enumerate(ranked):
            hits += match
            precision = hits / (place + 1)
            if match:
                precisions.append(precision)
                area += (1 / total) * (old_precision + precision) / 2
                last = place
            old_precision = precision
        firsts.append(ranked.index(True))
        at_hits.append(sum(precisions) / total)
        trapezoids.append(area)
        minps.append(total / (last + 1))
    shares = [sum(first <= rank for first in firsts) / len(firsts) for rank in range(max_rank)]
    means = (sum(each) / len(each) for each in (at_hits, trapezoids, minps))
    return Figures(np.array(shares), *means, queries=len(firsts), without_match=without)


@given(st.integers(0, 300), st.sampled_from([2, 5, 10**6]))
def test_the_figures_are_those_of_the_definition(seed: int, levels: int) -> None:
    case = made(seed, levels)
    found, expected = figures(case, 20), by_definition(case, 20)
    np.testing.assert_allclose(found.cmc_R, expected.cmc_R)
    for name in ("map_at_hits", "map_trapezoid", "minp", "queries", "without_match"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert (np.diff(found.cmc_R) >= 0).all()


def test_both_precisions_by_hand() -> None:
    """Person 1 before camera 0. Row 0 is of the same camera: left out though it is first. Then come
    a distractor, a match, another's image and a match: precisions 1/2 and 2/4. The line begins at
    0/1, the precision before the first match: (0 + 1/2) / 2 and (1/3 + 2/4) / 2."""
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    gallery = Labels(np.array([1, 0, 1, 2, 1]), np.array([0, 0, 1, 0, 2]))
    case = Case(scores, Labels(np.array([1]), np.array([0])), gallery)
    found = figures(case)
    assert found.cmc_R.tolist() == [0, 1, 1, 1, 1]
    assert found.map_at_hits == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.map_trapezoid == pytest.approx((1 / 4 + (1 / 3 + 2 / 4) / 2) / 2)
    assert found.minp == pytest.approx(2 / 4)


def test_a_first_match_has_a_line_that_begins_at_one() -> None:
    gallery = Labels(np.array([1, 2, 1]), np.array([1, 1, 1]))
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    found = figures(Case(scores, Labels(np.array([1]), np.array([0])), gallery))
    assert found.map_trapezoid == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)


@pytest.mark.parametrize(("identity_N", "first"), [([1, 2, 3], 0), ([3, 2, 1], 2)])
def test_ties_stand_in_the_order_of_the_gallery(identity_N: list[int], first: int) -> None:
    gallery = Labels(np.array(identity_N), np.array([1, 1, 1]))
    scores = np.full((1, 3), 0.25, np.float32)
    found = figures(Case(scores, Labels(np.array([1]), np.array([0])), gallery))
    assert int(found.cmc_R.argmax()) == first


def test_queries_without_a_match_are_counted_and_no_figure_is_made_up() -> None:
    gallery = Labels(np.array([1, 2]), np.array([0, 0]))
    scores = np.zeros((2, 2), np.float32)
    found = figures(Case(scores, Labels(np.array([1, 3]), np.array([0, 0])), gallery))
    assert (found.queries, found.without_match) == (0, 2)
    assert math.isnan(found.map_at_hits)


def published(queries: Floats, gallery: Floats, k1: int, k2: int, weight: float) -> list[list]:
    """Zhong et al. (2017), equation by equation: k-reciprocal sets R (2, 3), their expansion (4, 5),
    memberships V (7), local query expansion (11), Jaccard distance (10) and the sum (12)."""
    both = np.concatenate([queries, gallery]).astype(np.float64)
    total = range(len(both))
    distance = [[float(((both[i] - both[j]) ** 2).sum()) for j in total] for i in total]
    distance = [[each / max(row) for each in row] for row in distance]
    near = [sorted(total, key=lambda j: (distance[i][j], j)) for i in total]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in near[i][: k + 1] if i in near[j][: k + 1]}

    memberships = []
    for i in total:
        own = reciprocal(i, k1)
        members = set(own)
        for j in own:
            others = reciprocal(j, int(np.around(k1 / 2)))
            if len(others & own) > 2 / 3 * len(others):
                members |= others
        weights = {j: math.exp(-distance[i][j]) for j in members}
        memberships.append({j: each / sum(weights.values()) for j, each in weights.items()})
    averaged = []
    for i in total:
        parts = [memberships[j] for j in near[i][:k2]]
        averaged.append({j: sum(p.get(j, 0) for p in parts) / k2 for p in parts for j in p})
    final = []
    for i in range(len(queries)):
        row = []
        for j in range(len(queries), len(both)):
            keys = averaged[i].keys() | averaged[j].keys()
            values = [(averaged[i].get(key, 0), averaged[j].get(key, 0)) for key in keys]
            jaccard = 1 - sum(map(min, values)) / sum(map(max, values))
            row.append((1 - weight) * jaccard + weight * distance[i][j])
        final.append(row)
    return final


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (9, 3, 1.0)])
def test_re_ranked_distances_are_the_published_ones(k1: int, k2: int, weight: float) -> None:
    random = np.random.default_rng(k1)
    people = random.standard_normal((8, 6))
    embeddings = unit(people[random.integers(0, 8, 70)] + 0.6 * random.standard_normal((70, 6)))
    counted: list[int] = []
    ranked = ReRanked(embeddings[:20], embeddings[20:], k1, k2, weight, counted.append)
    found = np.concatenate([distances for _, distances in ranked.distances()])
    expected = np.array(published(embeddings[:20], embeddings[20:], k1, k2, weight))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected) > 0.3
    assert sum(counted) == 2 * 70


def test_a_collapsed_network_is_re_ranked_without_nan() -> None:
    alike = unit(np.ones((40, 4)))
    ranked = ReRanked(alike[:10], alike[10:], k1=5, k2=2)
    assert all(np.isfinite(distances).all() for _, distances in ranked.distances())
