"""Scores of pairs, and operating points among them, against scikit-learn and loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from manyfaces.train.evaluation import pair_scores as module
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.pair_scores import pair_scores

FARS = (1e-3, 1e-2, 0.05, 1e-1, 0.5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("pairs", [1, 40, 9000])
def test_scores_are_products_of_the_vectors_of_each_pair(dtype: type, pairs: int) -> None:
    """Few pairs are gathered, many are picked out of all products, by blocks."""
    random = np.random.default_rng(pairs)
    vectors_KD = random.standard_normal((300, 7)).astype(dtype)
    first, second = random.integers(0, 200, pairs), random.integers(50, 300, pairs)
    got = pair_scores(vectors_KD, first.astype(np.int32), second.astype(np.int32))
    expected = [
        sum(float(a) * float(b) for a, b in zip(vectors_KD[i], vectors_KD[j], strict=True))
        for i, j in zip(first, second, strict=True)
    ]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors_KD = random.standard_normal((60, 5))
    first, second = random.integers(0, 60, 2000), random.integers(0, 60, 2000)
    whole = pair_scores(vectors_KD, first, second)
    for block_bytes in (1, 60 * 8 * 7):  # one row at a time, and seven
        monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
        np.testing.assert_allclose(pair_scores(vectors_KD, first, second), whole, atol=1e-14)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 300))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    same = random.random(n) < draw(st.floats(0.05, 0.9))
    same[:2] = True, False
    scores = random.normal(same * draw(st.floats(0, 2)), 0.3)
    return np.round(scores, draw(st.integers(1, 6))), same  # rounding makes ties


@given(scored())
def test_the_nearest_point_is_that_of_insightface_on_scikit_learns_curve(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    """`eval_ijbc.py`: both rates upside down, then the first of those nearest to the wanted FAR."""
    scores, same = case
    far, tar, threshold = (each[::-1] for each in roc_curve(same, scores))
    roc = Roc.of(scores, same)
    for wanted in FARS:
        _, at = min(zip(np.abs(far - wanted), range(len(far)), strict=True))
        point = roc.nearest(wanted)
        assert (point.tar, point.far) == (tar[at], far[at])
        assert point.threshold == threshold[at]
        assert point.false_accepts == (scores[~same] >= threshold[at]).sum()
    assert roc.auc == pytest.approx(roc_auc_score(same, scores))


@given(scored())
def test_the_conservative_point_is_the_best_of_all_thresholds_within_the_far(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, same = case
    roc = Roc.of(scores, same)
    for wanted in FARS:
        point = roc.conservative(wanted)
        if wanted * (~same).sum() < 1:
            assert point is None
            continue
        assert point is not None
        passed = [scores >= t for t in (np.inf, *scores)]
        fitting = [p for p in passed if p[~same].mean() <= wanted]
        assert point.tar == max(p[same].mean() for p in fitting)
        assert point.far == (scores >= point.threshold)[~same].mean() <= wanted


def test_the_nearest_point_may_exceed_the_wanted_far() -> None:
    """Ten impostors and two genuine pairs, one of them below four impostors: at a FAR of 0.35
    InsightFace takes 0.4, and so both genuine pairs; three false accepts are allowed."""
    impostors, genuine = np.arange(10, 0, -1) / 100, np.array([0.5, 0.065])
    scores = np.concatenate([impostors, genuine])
    same = np.arange(12) >= 10
    roc = Roc.of(scores, same)
    nearest, conservative = roc.nearest(0.35), roc.conservative(0.35)
    assert conservative is not None
    assert (nearest.tar, nearest.far, nearest.false_accepts) == (1.0, 0.4, 4)
    assert (conservative.tar, conservative.far, conservative.false_accepts) == (0.5, 0.3, 3)


def test_a_far_that_is_a_whole_number_of_pairs_is_allowed_in_full() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    roc = Roc.of(np.arange(101.0), np.arange(101) == 0)
    point = roc.conservative(0.29)
    assert point is not None
    assert point.false_accepts == 29
    assert roc.interval(1.0, np.random.default_rng(0)) is None


def test_the_interval_is_that_of_resampled_pairs() -> None:
    """Against resamples that are made: quantiles of the conservative TAR over 4,000 of them."""
    random = np.random.default_rng(3)
    same = np.arange(1300) < 300
    scores = np.round(random.normal(same * 0.35, 0.2), 2)  # with ties
    roc = Roc.of(scores, same)
    genuine, impostors = scores[same], scores[~same]
    for far in (1e-2, 1e-1):
        allowed = round(far * len(impostors))
        tars = []
        for _ in range(4000):
            drawn = np.sort(random.choice(impostors, len(impostors)))[::-1]
            tars.append((random.choice(genuine, len(genuine)) > drawn[allowed]).mean())
        got = roc.interval(far, random)
        assert got is not None
        np.testing.assert_allclose(got, np.quantile(tars, [0.025, 0.975]), atol=0.012)
        point = roc.conservative(far)
        assert point is not None
        assert got[0] < point.tar < got[1]


def test_a_thinned_curve_is_on_the_curve_and_has_its_ends() -> None:
    random = np.random.default_rng(0)
    same = random.random(5000) < 0.2
    roc = Roc.of(random.normal(same, 1), same)
    far, tar = roc.thinned(50)
    assert len(far) <= 50
    assert far[0] == 1 / (~same).sum()
    assert (far[-1], tar[-1]) == (1, 1)
    assert np.all(np.diff(far) > 0)
    assert set(zip(far, tar, strict=True)) <= set(zip(roc.far, roc.tar, strict=True))
