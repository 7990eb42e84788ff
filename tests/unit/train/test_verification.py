"""Metrics against scikit-learn, and against InsightFace's protocol written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from manyfaces.train.evaluation import metrics as verification


@st.composite
def scored(draw):
    n = draw(st.integers(20, 300))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    same = rng.random(n) < 0.5
    same[:2] = True, False
    scores = np.clip(rng.normal(same * draw(st.floats(0, 1)), 0.3), -1, 1)
    return np.round(scores, draw(st.integers(1, 6))), same  # rounding makes ties


@given(scored())
def test_roc_and_auc_are_scikit_learns(case) -> None:
    scores, same = case
    far, tar = verification.roc(scores, same)
    theirs_far, theirs_tar, _ = roc_curve(same, scores, drop_intermediate=False)
    assert np.allclose(far, theirs_far)
    assert np.allclose(tar, theirs_tar)
    assert verification.auc(far, tar) == pytest.approx(roc_auc_score(same, scores))


@given(scored())
def test_best_accuracy_is_the_best_of_all_thresholds(case) -> None:
    scores, same = case
    thresholds = [*scores, np.inf]
    assert verification.best_accuracy(scores, same) == pytest.approx(
        max(((scores >= t) == same).mean() for t in thresholds)
    )


@given(scored())
def test_kfold_accuracy_is_insightfaces_protocol(case) -> None:
    """Squared distance below a threshold of 0..4 in steps of 0.01, chosen on nine folds, counted on
    the tenth; folds unshuffled."""
    scores, same = case
    folds = np.array_split(np.arange(len(same)), 10)
    expected = []
    for fold in folds:
        rest = np.array([i for i in range(len(same)) if i not in set(fold)])
        accuracy = [
            np.mean((2 - 2 * scores[rest] < t) == same[rest]) for t in np.arange(0, 4, 0.01)
        ]
        expected.append(
            np.mean(
                (2 - 2 * scores[fold] < np.arange(0, 4, 0.01)[int(np.argmax(accuracy))])
                == same[fold]
            )
        )
    assert np.allclose(verification.kfold_accuracy(scores, same), expected)


def test_tar_at_far_never_exceeds_the_far() -> None:
    same = np.array([True] * 100 + [False] * 100)
    scores = np.concatenate([np.linspace(0.4, 1, 100), np.linspace(0, 0.5, 100)])
    report = verification.report(scores, same)
    assert report.tar_at_far["1e-02"] == pytest.approx(
        np.mean(scores[:100] > np.sort(scores[100:])[-2])
    )
    assert report.tar_at_far["1e-03"] is None


def test_embeddings_of_any_length_are_normalised() -> None:
    e = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    assert np.allclose(
        verification.cosine_scores(e), verification.cosine_scores(e * np.arange(1, 9)[:, None])
    )


def test_a_set_of_one_kind_of_pair_has_no_auc() -> None:
    assert verification.report(np.linspace(0, 1, 20), np.ones(20, bool)).auc is None
