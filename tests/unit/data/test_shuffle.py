"""The window shuffle: every sample once an epoch, only a window's shards at a time. What it has in
common with all orders is tested in test_orders.py."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from made_part import made_part

from manyfaces.data.orders.shuffle import Shuffle

shards = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)
seeds = st.integers(0, 2**32 - 1)
windows = st.integers(1, 5)


@given(shards, seeds, windows, st.integers(0, 3))
def test_every_sample_exactly_once_an_epoch(samples, seed, window, epoch) -> None:
    order = Shuffle(made_part(samples), seed, window)
    ids = order.ids(epoch * order.num_samples, order.num_samples)
    assert sorted(ids) == list(range(order.num_samples))


@given(
    shards,
    seeds,
    windows,
    st.integers(0, 500),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_any_cut_of_the_stream_gives_the_same_stream(
    samples, seed, window, position, counts
) -> None:
    whole = Shuffle(made_part(samples), seed, window).ids(position, sum(counts))
    starts = position + np.cumsum([0, *counts[:-1]])
    # A fresh object for each part, last first: nothing may depend on what was asked before.
    parts = [
        Shuffle(made_part(samples), seed, window).ids(int(start), count)
        for start, count in reversed(list(zip(starts, counts, strict=True)))
    ]
    assert np.array_equal(np.concatenate(parts[::-1]), whole)


@given(shards, seeds, windows, st.integers(1, 64), st.integers(1, 6))
def test_shares_of_ranks_are_full_and_make_the_global_batch(
    samples, seed, window, batch, world
) -> None:
    batch = max(batch, world)
    order = Shuffle(made_part(samples), seed, window)
    position = 3 * batch
    shares = [
        order.ids(position + r * batch // world, (r + 1) * batch // world - r * batch // world)
        for r in range(world)
    ]
    assert min(len(s) for s in shares) >= 1
    assert max(len(s) for s in shares) - min(len(s) for s in shares) <= 1
    assert np.array_equal(np.concatenate(shares), order.ids(position, batch))


def test_batches_span_the_end_of_an_epoch() -> None:
    order = Shuffle(made_part(np.array([5, 5])), 0, 1)
    ids = order.ids(7, 6)
    assert len(ids) == 6
    assert set(order.ids(0, 7)) | set(ids[:3]) == set(range(10))


def test_a_window_is_near() -> None:
    """At any time only the window's shards are read."""
    samples = np.full(12, 10)
    order = Shuffle(made_part(samples), 5, 3)
    for window in range(4):
        assert len(set(order.ids(window * 30, 30) // 10)) == 3


def test_epochs_and_seeds_differ() -> None:
    order = Shuffle(made_part(np.full(8, 50)), 1, 2)
    assert not np.array_equal(order.ids(0, 400), order.ids(400, 400))
    assert not np.array_equal(
        order.ids(0, 400), Shuffle(made_part(np.full(8, 50)), 2, 2).ids(0, 400)
    )


def test_the_order_is_stable_over_versions() -> None:
    """A checkpoint of an older version must go on with the same samples: these numbers may never
    change."""
    assert Shuffle(made_part(np.array([4, 4, 4])), 0, 2).ids(0, 12).tolist() == GOLDEN


GOLDEN = [11, 9, 10, 3, 2, 1, 8, 0, 7, 5, 4, 6]
