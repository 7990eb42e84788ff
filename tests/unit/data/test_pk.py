"""The P x K order: balanced, exact from any position, at any world size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from made_part import of_people

from manyfaces.configs import rng
from manyfaces.data.orders.pk import PK


@given(st.integers(0, 2**63), st.integers(1, 3000))
def test_shuffled_is_a_permutation(key: int, length: int) -> None:
    order = rng.shuffled(
        np.full(length, key, np.uint64), np.arange(length), np.full(length, length)
    )
    assert np.array_equal(np.sort(order), np.arange(length))


def test_shuffled_reaches_every_order_and_place_alike() -> None:
    keys = rng.mix(np.arange(60_000, dtype=np.uint64))
    for length in (2, 3, 4, 5, 7):
        where = np.stack(
            [
                rng.shuffled(keys, np.full(len(keys), p), np.full(len(keys), length))
                for p in range(length)
            ]
        )
        orders, counts = np.unique(where, axis=1, return_counts=True)
        assert orders.shape[1] >= 0.99 * np.prod(np.arange(1, length + 1))
        for place in where:
            assert np.bincount(place).min() > 0.95 * len(keys) / length
        assert counts.min() > 0.5 * counts.mean() or length == 7


sets = st.lists(st.integers(1, 12), min_size=1, max_size=40).map(
    lambda counts: np.repeat(np.arange(len(counts)), counts).astype(np.uint32)
)


@given(sets, st.integers(0, 99), st.integers(1, 6))
def test_a_round_shows_every_identity_once_with_k_images(
    identity_N, seed: int, images_each: int
) -> None:
    identity_N = identity_N[rng.permutation(seed, len(identity_N))]
    order = PK(of_people(identity_N), seed, images_each)
    num_identities, counts = len(np.unique(identity_N)), np.bincount(identity_N)
    size = num_identities * images_each
    for turn in range(3):
        groups = identity_N[order.ids(turn * size, size)].reshape(-1, images_each)
        assert (groups == groups[:, :1]).all()
        assert np.array_equal(np.sort(groups[:, 0]), np.arange(num_identities))
    times = np.bincount(order.ids(0, 12 * size), minlength=len(identity_N))
    for identity in range(num_identities):
        of_theirs = times[identity_N == identity]
        assert of_theirs.sum() == 12 * images_each
        assert of_theirs.max() - of_theirs.min() <= 1
        assert len(of_theirs) == counts[identity]


@given(sets, st.integers(0, 10**12), st.integers(1, 30), st.integers(0, 30))
def test_any_part_of_the_stream_is_the_same_from_anywhere(
    identity_N, position: int, count: int, cut: int
) -> None:
    order = PK(of_people(identity_N), 3, 4)
    whole = order.ids(position, count + cut)
    assert np.array_equal(
        np.concatenate([order.ids(position, cut), order.ids(position + cut, count)]), whole
    )
    assert not len(order.ids(position, 0))


def test_seeds_and_rounds_differ() -> None:
    identity_N = np.repeat(np.arange(50), 8).astype(np.uint32)
    first = PK(of_people(identity_N), 0, 4).ids(0, 400)
    assert not np.array_equal(first[:200], PK(of_people(identity_N), 1, 4).ids(0, 200))
    assert not np.array_equal(identity_N[first[:200]], identity_N[first[200:]])
    assert not np.array_equal(np.sort(first[:200]), np.sort(first[200:]))
