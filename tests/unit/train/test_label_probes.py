"""Probes of embeddings by labels that the training has not seen, against scikit-learn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols import knn
from manyfaces.configs.protocols.few_shot import FewShot as FewShotConfig
from manyfaces.configs.protocols.linear_probe import LinearProbe as LinearProbeConfig
from manyfaces.train.evaluation.nearest import unit
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.linear_probe import fit
from manyfaces.train.protocols.protocol import Protocol

DIM = 8
COUNTS = (1, 2, 3, 5, 8, 9, 12, 1, 4, 6, 7, 11)
"""Images of each identity."""


def folder(path: Path, counts: tuple[int, ...] = COUNTS, first: int = 0) -> str:
    for who, count in enumerate(counts):
        (path / f"{who:02}").mkdir(parents=True)
        for n in range(count):
            (path / f"{who:02}" / f"{first + n:03}.jpg").write_bytes(f"{who} {first + n}".encode())
    return str(path)


def embedding(image: bytes) -> NDArray[np.float32]:
    who, _ = image.split()
    person = np.random.default_rng(int(who)).standard_normal(DIM)
    own = np.random.default_rng(list(image)).standard_normal(DIM)
    return ((person + 0.9 * own) * (1 + int(who))).astype(np.float32)


def outcome(config: knn.KNN | LinearProbeConfig | FewShotConfig) -> tuple[Protocol, Result]:
    protocol: Protocol = config.build()
    protocol.name = "made"
    images = [bytes(image) for image in protocol.images()]
    return protocol, protocol.result(np.stack([embedding(image) for image in images]))


def parts(protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit embeddings and labels that are learnt from, and those that are asked for."""
    embeddings = np.stack([embedding(bytes(image)) for image in protocol.images()])
    learnt, asked = protocol.split(embeddings)
    return learnt, protocol.code_N, asked, protocol.code_Q


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.3), (200, 1.0)])
def test_neighbours_vote_as_scikit_learn_s_do(tmp_path: Path, k: int, temperature: float) -> None:
    protocol, result = outcome(
        knn.KNN(path=folder(tmp_path), neighbours=k, temperature=temperature, seed=3)
    )
    learnt, labels, asked, expected = parts(protocol)
    neighbours = KNeighborsClassifier(
        min(k, len(learnt)),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1 - distances) / temperature),
    ).fit(learnt.astype(np.float64), labels)
    hits = neighbours.predict(asked.astype(np.float64)) == expected
    assert result.scalars["accuracy"] == pytest.approx(hits.mean(), abs=1e-12)
    assert 0 < hits.mean() < 1
    nearest = labels[(asked @ learnt.T).argmax(1)] == expected
    assert result.scalars["nearest"] == pytest.approx(nearest.mean(), abs=1e-12)


def test_one_image_of_each_identity_that_has_several_is_asked_for(tmp_path: Path) -> None:
    where = folder(tmp_path)
    drawn = []
    for seed in (0, 0, 1):
        protocol, result = outcome(knn.KNN(path=where, seed=seed))
        _, learnt, _, asked = parts(protocol)
        several = [who for who, count in enumerate(COUNTS) if count > 1]
        assert asked.tolist() == several
        assert np.bincount(learnt).tolist() == [n - (n > 1) for n in COUNTS]
        assert result.counts == {"learnt": len(learnt), "asked": len(several), "identities": 12}
        drawn.append(protocol._asked.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_list_of_its_own_is_asked_for(tmp_path: Path) -> None:
    told = folder(tmp_path / "told")
    asked = folder(tmp_path / "asked", (2,) * 14, first=100)
    protocol, result = outcome(knn.KNN(path=told, test=asked, neighbours=5))
    learnt, labels, rows, expected = parts(protocol)
    assert expected.tolist() == [who for who in range(12) for _ in range(2)]
    assert result.counts["asked"] == 24  # nobody knows the last two
    nearest = labels[(rows @ learnt.T).argmax(1)] == expected
    assert result.scalars["nearest"] == pytest.approx(nearest.mean(), abs=1e-12)


@pytest.mark.parametrize("c", [0.5, 10.0, 1000.0])
def test_the_linear_probe_is_scikit_learn_s_logistic_regression(tmp_path: Path, c: float) -> None:
    protocol, result = outcome(LinearProbeConfig(path=folder(tmp_path), c=c, max_iterations=5000))
    learnt, labels, asked, expected = parts(protocol)
    fitted = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(learnt.astype(float), labels)
    assert result.scalars["accuracy"] == pytest.approx(
        (fitted.predict(asked) == expected).mean(), abs=1e-12
    )
    assert result.scalars["learnt_accuracy"] == pytest.approx(
        fitted.score(learnt, labels), abs=1e-12
    )
    ours = fit(learnt, labels, c, 5000)
    np.testing.assert_allclose(ours.weight_CD.numpy(), fitted.coef_, rtol=2e-3, atol=2e-3)


def test_few_shots_are_scikit_learn_s_nearest_means(tmp_path: Path) -> None:
    config = FewShotConfig(path=folder(tmp_path), ways=5, shots=3, episodes=40, seed=2)
    protocol, result = outcome(config)
    embeddings = unit(np.stack([embedding(bytes(image)) for image in protocol.images()]))
    code_N = protocol.lists[0].code_N
    accuracies, seen = [], set()
    for episode in range(40):
        drawn = protocol.drawn(episode)
        assert drawn.shape == (5, 4)
        assert len({*drawn.ravel().tolist()}) == 20
        assert (code_N[drawn] == code_N[drawn[:, :1]]).all()
        assert len({*code_N[drawn[:, 0]].tolist()}) == 5
        seen |= {*code_N[drawn[:, 0]].tolist()}
        # On a sphere the nearest by Euclid is the nearest by angle.
        means = unit(embeddings[drawn[:, :3]].mean(1))
        nearest = KNeighborsClassifier(1).fit(means, np.arange(5))
        accuracies.append((nearest.predict(embeddings[drawn[:, 3]]) == np.arange(5)).mean())
    assert seen == {who for who, count in enumerate(COUNTS) if count > 3}
    assert result.scalars["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    low, high = result.intervals["accuracy"]
    error = 1.96 * np.std(accuracies, ddof=1) / math.sqrt(40)
    assert (low, high) == pytest.approx(
        (np.mean(accuracies) - error, np.mean(accuracies) + error), abs=1e-9
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: knn.KNN(path=a), "no identity has several images"),
        (lambda a, b: knn.KNN(path=b, test=b), "of its images are in"),
        (lambda a, b: FewShotConfig(path=b, ways=9, shots=5), "6 images or more"),
        (
            lambda a, b: knn.KNN(path=b, test=str(Path(a).parent / "other")),
            "not one of its ident",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, make, message: str) -> None:
    single, several = folder(tmp_path / "a", (1, 1)), folder(tmp_path / "b")
    (tmp_path / "other" / "someone").mkdir(parents=True)
    (tmp_path / "other" / "someone" / "1.jpg").write_bytes(b"1 1")
    with pytest.raises(UserError, match=message) as told:
        make(single, several).build()
    assert "\n" not in str(told.value)


def test_a_result_s_source_tells_two_probes_apart() -> None:
    sources = [json.loads(knn.KNN(path="faces", neighbours=k).source()) for k in (5, 20)]
    assert sources[0] != sources[1]
