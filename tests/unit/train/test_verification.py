"""Figures of verification against InsightFace's procedure, written out from its definition, and
against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.bootstrap import roc_intervals
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.roc_report import FARS, rate_scalars, tar_table

THRESHOLDS = [0.01 * number for number in range(400)]


@st.composite
def scored(draw):
    n = draw(st.integers(20, 300))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    same = rng.random(n) < 0.5
    same[:2] = True, False
    scores = np.clip(rng.normal(same * draw(st.floats(0, 1)), 0.3), -1, 1)
    return np.round(scores, draw(st.integers(1, 6))), same  # rounding makes ties


@st.composite
def embedded(draw):
    """Embeddings of pairs, of which some images are the same, some opposite."""
    n = draw(st.integers(10, 130))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    same = rng.random(n) < 0.5
    first = rng.normal(size=(n, 6))
    second = np.where(same[:, None], first * draw(st.floats(0, 2)), 0) + rng.normal(size=(n, 6))
    alike = rng.random(n) < 0.1
    second[alike] = first[alike] * rng.choice([-2, 1, 3], (alike.sum(), 1))
    return np.stack([first, second], 1).reshape(2 * n, 6).astype(np.float32), same


def published(embeddings, same):
    """InsightFace's eval/verification.py as it is described: squared distance of unit vectors,
    thresholds 0 to 3.99, strictly below, ten unshuffled folds, the lowest best threshold of nine."""
    unit = normalize(embeddings.astype(np.float64))
    distances = ((unit[0::2] - unit[1::2]) ** 2).sum(1)
    accuracies, chosen, vals, fars = [], [], [], []
    for train, test in KFold(10).split(distances):
        right = ((distances[train, None] < np.arange(0, 4, 0.01)) == same[train, None]).sum(0)
        chosen.append(np.arange(0, 4, 0.01)[right.argmax()])  # the first of the best
        accuracies.append(np.mean((distances[test] < chosen[-1]) == same[test]))
        impostors = distances[train][~same[train]]
        fine = np.arange(0, 4, 0.001)
        far = (impostors[:, None] < fine).mean(0) if len(impostors) else np.zeros(4000)
        threshold = 0.0
        if far.max() >= 1e-3:
            # The line through the last threshold below this FAR and the first one at or above it.
            above = int(np.argmax(far > 1e-3))
            threshold = float(
                interp1d(far[above - 1 : above + 1], fine[above - 1 : above + 1])(1e-3)
            )
        for kind, kept in ((same, vals), (~same, fars)):
            if kind[test].any():
                kept.append(np.mean(distances[test][kind[test]] < threshold))
    return accuracies, chosen, vals, fars


@given(embedded())
def test_folds_are_insightfaces_to_the_digit(case) -> None:
    embeddings, same = case
    accuracies, chosen, vals, fars = published(embeddings, same)
    distances = metrics.squared_distances(embeddings)
    folds, val = metrics.kfold(distances, same), metrics.val_at_far(distances, same)
    assert folds.accuracy_F.tolist() == accuracies
    assert folds.threshold_F.tolist() == chosen
    assert folds.correct_N.mean() == pytest.approx(
        np.average(accuracies, weights=[len(test) for _, test in KFold(10).split(same)])
    )
    if vals and fars:
        expected = (np.mean(vals), np.std(vals), np.mean(fars))
        assert val == pytest.approx(expected, abs=1e-12)
    else:
        assert val == (None, None, None)


def test_a_set_worked_by_hand() -> None:
    """Ten pairs, a fold each. A distance is below a threshold strictly, and of equally good
    thresholds the lowest counts: genuine pairs at 0.5 and impostors at 1 are told apart from 0.51
    on, so that the genuine pair at 1.0 is missed, and so is the impostor at 0.505 found."""
    same = np.array([True] * 5 + [False] * 5)
    distances = np.array([0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.505])
    folds = metrics.kfold(distances, same)
    assert folds.accuracy_F.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 0]
    np.testing.assert_allclose(folds.threshold_F, 0.51)
    assert folds.accuracy_F.std() == pytest.approx(0.4)  # ddof 0
    exactly = metrics.kfold(np.where(same, THRESHOLDS[50], 1.0), same)
    np.testing.assert_allclose(exactly.threshold_F, 0.51)


def test_a_val_worked_by_hand() -> None:
    """Each set of nine folds has 1,800 impostors at 1.0, 1.001 ...: it takes 1.8 of them to have a
    FAR of 1e-3, so that the threshold lies between those behind the first and the second."""
    impostors = 1 + 0.001 * np.arange(2000)
    fold = np.arange(2000) % 10
    order = np.argsort(fold, kind="stable")  # fold f has impostors f, f + 10, ...
    genuine = np.array([0.5, 1.0018] * 1000)
    distances = np.stack([genuine.reshape(10, 200), impostors[order].reshape(10, 200)], 1).ravel()
    same = np.tile(np.repeat([True, False], 200), 10)
    val = metrics.val_at_far(distances, same)
    # Behind one impostor, where it is in the other folds, 1.001; two 1.002: 0.8 of the way.
    assert val.val == pytest.approx(0.5 + 0.5 * 0.2, abs=1e-9)  # of folds 0 and 1 the latter's too
    assert val.far == pytest.approx(np.mean([1 / 200, 1 / 200] + [0] * 8), abs=1e-9)


@given(scored())
def test_the_eer_is_where_scikit_learns_curve_meets_the_diagonal(case) -> None:
    scores, same = case
    curve = Roc.of(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose((curve.far, curve.tar), (far, tar))
    np.testing.assert_array_equal(curve.threshold_T, thresholds)
    line = interp1d(far, tar)
    expected = brentq(lambda x: 1 - x - line(x), 0, 1, xtol=1e-14)
    assert curve.eer == pytest.approx(expected, abs=1e-9)


def test_an_eer_worked_by_hand() -> None:
    """Of 4 genuine and 4 impostor pairs: behind the third genuine pair one impostor is accepted."""
    same = np.array([True, True, False, True, False, True, False, False])
    curve = Roc.of(np.linspace(1, 0, 8), same)
    assert curve.eer == pytest.approx(0.25)
    apart = Roc.of(np.linspace(1, 0, 8), np.arange(8) < 4)
    assert (apart.eer, apart.auc) == (0, 1)
    assert Roc.of(np.linspace(0, 1, 8), np.arange(8) < 4).eer == 1
    # Half of the genuine and none of the impostors, then all: on the line between.
    between = Roc.of(np.array([1.0, 1, 0, 0, 0, 0]), np.array([1, 1, 1, 1, 0, 0], bool))
    assert between.eer == pytest.approx(1 / 3)


@given(scored())
def test_best_accuracy_is_the_best_of_all_thresholds(case) -> None:
    scores, same = case
    thresholds = [*scores, np.inf]
    assert metrics.best_accuracy(scores, same) == pytest.approx(
        max(((scores >= t) == same).mean() for t in thresholds)
    )


def test_embeddings_of_any_length_are_normalised() -> None:
    e = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    longer = e * np.arange(1, 9)[:, None]
    np.testing.assert_allclose(metrics.cosine_scores(e), metrics.cosine_scores(longer))
    np.testing.assert_allclose(metrics.squared_distances(e), 2 - 2 * metrics.cosine_scores(e))


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_pair_has_no_curve(kind: bool) -> None:
    same = np.full(20, kind)
    curve = Roc.of(np.linspace(0, 1, 20), same)
    assert not curve.has_both
    assert set(rate_scalars(curve).values()) == {None}
    assert tar_table(curve, roc_intervals(np.linspace(0, 1, 20), same, FARS)) == {}
    assert metrics.val_at_far(np.linspace(0, 1, 20), same) == (None, None, None)
    assert metrics.kfold(np.linspace(0, 1, 20), same).accuracy_F.shape == (10,)
