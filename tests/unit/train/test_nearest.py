"""Search beside the definition: all products in double precision, sorted by score and row."""

import logging
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyfaces.configs.errors import UserError
from manyfaces.train.evaluation import nearest
from manyfaces.train.evaluation.nearest import (
    Floats,
    InvertedLists,
    Nearest,
    blocks,
    exact_search,
    recall,
    unit,
)


def made(rows: int, dim: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((rows, dim)))


def by_definition(queries_QD: Floats, gallery_ND: Floats, k: int) -> Nearest:
    products = queries_QD.astype(np.float64) @ gallery_ND.astype(np.float64).T
    scores = products.astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(scores, rows, 1), rows)


def same(found: Nearest, expected: Nearest) -> None:
    np.testing.assert_array_equal(found.rows_QK, expected.rows_QK)
    np.testing.assert_allclose(found.scores_QK, expected.scores_QK, rtol=0, atol=1e-7)


@pytest.fixture(params=["faiss", "matrix products"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "faiss":
        monkeypatch.setattr(nearest, "_faiss", lambda: None)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("k", [1, 7, 400])
def test_exact_search_is_the_sorted_products(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_BLOCK_NUMBERS", 16 * 50)
    monkeypatch.setattr(nearest, "_QUERY_ROWS", 11)
    queries, gallery = made(30), made(333, seed=1)
    counted: list[int] = []
    found = exact_search(queries, [gallery[:200], gallery[200:]], k, counted.append)
    assert found.rows_QK.shape == (30, min(k, 333))
    assert sum(counted) == 333
    same(found, by_definition(queries, gallery, k))


@pytest.mark.usefixtures("library")
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equal_rows_stand_in_the_order_of_the_gallery(data: st.DataObject) -> None:
    """Galleries of few distinct rows, so that ties cross the K-th place and the blocks' ends."""
    distinct = made(data.draw(st.integers(1, 4)), seed=2)
    chosen = data.draw(st.lists(st.integers(0, len(distinct) - 1), min_size=1, max_size=80))
    cut = data.draw(st.integers(0, len(chosen)))
    k = data.draw(st.integers(1, 20))
    gallery = distinct[chosen]
    found = exact_search(made(5), [gallery[:cut], gallery[cut:]], k)
    np.testing.assert_array_equal(found.rows_QK, by_definition(made(5), gallery, k).rows_QK)


@pytest.mark.usefixtures("library")
def test_a_collapsed_network_gives_the_first_rows() -> None:
    """All embeddings are the same: whatever the block, all of it ties."""
    gallery = np.repeat(made(1, dim=512), 300, axis=0)
    found = exact_search(gallery[:150], [gallery], 5)
    assert (found.rows_QK == np.arange(5)).all()
    assert exact_search(gallery[:0], [gallery], 5).rows_QK.shape[0] == 0


def test_inverted_lists_that_are_all_probed_are_exact() -> None:
    queries, gallery = made(20), made(500, seed=1)
    lists = InvertedLists(16, InvertedLists.lists_for(500))
    assert lists.num_lists == 22
    lists.train(gallery[InvertedLists.sample_rows(500, lists.num_lists)])
    lists.add(gallery[:100])
    lists.add(gallery[100:])
    exact = exact_search(queries, blocks(gallery), 10)
    everywhere = lists.search(queries, 10, probes=lists.num_lists)
    same(everywhere, exact)
    assert recall(everywhere, exact) == 1.0
    few = lists.search(queries, 10, probes=1)
    found = [set(a) & set(b) for a, b in zip(few.rows_QK, exact.rows_QK, strict=True)]
    assert recall(few, exact) == sum(map(len, found)) / 200
    assert 0 < recall(few, exact) < 1
    assert (np.diff(few.scores_QK.clip(-2)) <= 0).all()
    again = InvertedLists(16, 22)
    again.train(gallery[InvertedLists.sample_rows(500, 22)])
    again.add(gallery)
    np.testing.assert_array_equal(again.search(queries, 10, 1).rows_QK, few.rows_QK)


def test_lists_with_fewer_rows_than_asked_for_are_filled_with_none() -> None:
    gallery = made(12, seed=1)
    lists = InvertedLists(16, 12)
    lists.train(gallery)
    lists.add(gallery)
    found = lists.search(gallery, 5, probes=1)
    assert (found.rows_QK[:, 0] == np.arange(12)).all()
    assert (found.rows_QK[:, -1] == -1).any()
    assert np.isneginf(found.scores_QK[found.rows_QK < 0]).all()


def test_unusable_input_is_told() -> None:
    gallery = made(10)
    with pytest.raises(UserError, match=r"gallery from row 10 on: embeddings of shape \(5, 8\)"):
        exact_search(gallery, [gallery, made(5, dim=8)], 3)
    with pytest.raises(UserError, match="the queries: embeddings that are not finite"):
        exact_search(gallery * np.float32("nan"), [gallery], 3)
    with pytest.raises(UserError, match="40 lists cannot be made of 10 rows; ask for fewer"):
        InvertedLists(16, 40).train(gallery)


def test_without_faiss_there_is_exact_search_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    nearest._faiss.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                exact_search(made(3), [made(10)], 2)
        (record,) = caplog.records
        assert "pip install 'manyfaces[search]'" in record.getMessage()
        with pytest.raises(UserError, match=r"IVF\) needs faiss; pip install 'manyfaces\[search\]"):
            InvertedLists(16, 2)
    finally:
        nearest._faiss.cache_clear()


def test_rows_of_length_one() -> None:
    rows = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert rows.dtype == np.float32
