"""What holds for every order, over one part and over several: a pure function of the position,
exact at any world size, shares that are exact. A new kind of order is tested here without being
named."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_part import made_dataset, made_part, uneven_identities

from manyfaces.configs.errors import UserError
from manyfaces.configs.orders.order import Order as OrderKind
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.split import batch_share
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.part import Part
from manyfaces.data.orders.build import build_order, check_sizes
from manyfaces.data.orders.mixed import BLOCK, part_seed, quotas
from manyfaces.data.orders.order import Order

SETTINGS: list[OrderKind] = [
    *(kind() for kind in OrderKind.kinds()),
    Shuffle(window_shards=1),
    Shuffle(window_shards=2),
    PK(images_per_identity=2),
    PK(images_per_identity=7),
]


@st.composite
def datasets(draw: st.DrawFn, least_parts: int = 1) -> Dataset:
    """Up to four parts of up to six shards."""
    parts: list[Part] = []
    for number in range(draw(st.integers(least_parts, 4))):
        counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
        people = draw(st.integers(1, min(30, sum(counts))))
        identity_N = uneven_identities(sum(counts), people)
        parts.append(made_part(counts, identity_N, f"part-{number}"))
    weights = draw(st.lists(st.integers(1, 50), min_size=len(parts), max_size=len(parts)))
    return made_dataset(parts, weights)


one_or_several = datasets()
several = datasets(least_parts=2)
kinds = st.sampled_from(SETTINGS)
pks = st.integers(2, 6).map(lambda k: PK(images_per_identity=k))
seeds = st.integers(0, 2**32 - 1)
positions = st.integers(0, 10**9)


def part_of(dataset: Dataset, ids_N: np.ndarray) -> np.ndarray:
    """The number of each sample's part."""
    first = [part.first_sample for part in dataset.parts]
    return np.searchsorted(first, ids_N, side="right") - 1


def shards_of(dataset: Dataset, ids_N: np.ndarray) -> np.ndarray:
    """The number of each sample's shard in the whole dataset."""
    samples = np.array([shard.samples for shard in dataset.manifest.shards])
    return np.searchsorted(np.cumsum(samples), ids_N, side="right")


@given(one_or_several, kinds, seeds, positions, st.integers(0, 1500))
def test_ids_are_samples_of_the_dataset(dataset, config, seed, position, count) -> None:
    order = build_order(dataset, config, seed)
    ids = order.ids(position, count)
    assert ids.dtype == np.int64
    assert ids.shape == (count,)
    assert order.num_samples == dataset.manifest.num_images
    assert not count or 0 <= ids.min() <= ids.max() < dataset.manifest.num_images


@given(
    one_or_several,
    kinds,
    seeds,
    positions,
    st.lists(st.integers(0, 1500), min_size=1, max_size=4),
)
def test_any_cut_of_the_stream_gives_the_same_stream(
    dataset, config, seed, position, counts
) -> None:
    whole = build_order(dataset, config, seed).ids(position, sum(counts))
    starts = position + np.cumsum([0, *counts[:-1]])
    # A fresh object for each piece, last first: nothing may depend on what was asked before.
    pieces = [
        build_order(dataset, config, seed).ids(int(start), count)
        for start, count in reversed(list(zip(starts, counts, strict=True)))
    ]
    assert np.array_equal(np.concatenate(pieces[::-1]), whole)


@given(one_or_several, kinds, seeds, st.integers(1, 64), st.integers(1, 6), st.integers(0, 10**6))
def test_shares_of_ranks_make_the_global_batch(dataset, config, seed, batch, world, step) -> None:
    batch = max(batch, world)
    position = step * batch
    order = build_order(dataset, config, seed)
    ranks = []
    for rank in range(world):
        lo, hi = batch_share(batch, rank, world)
        ranks.append(build_order(dataset, config, seed).ids(position + lo, hi - lo))
    assert np.array_equal(np.concatenate(ranks), order.ids(position, batch))


@given(one_or_several, kinds, seeds, positions, st.integers(1, 3))
@settings(max_examples=20)
def test_the_shards_that_are_needed_next_are_told(dataset, config, seed, position, windows) -> None:
    order = build_order(dataset, config, seed)
    told = order.shards(position, windows)
    assert 1 <= len(told) <= windows
    now = told[0]
    assert np.array_equal(now, order.shards(position, 1)[0])
    assert all(len(np.unique(window)) == len(window) for window in told)
    most = [config.num_cached_shards(len(part.manifest.shards)) for part in dataset.parts]
    assert max(map(len, told)) <= sum(most)
    # The next sample of each part is among what is needed now.
    ids = order.ids(position, 2 * BLOCK * order.unit)
    for number in range(len(dataset.parts)):
        own = ids[part_of(dataset, ids) == number]
        assert shards_of(dataset, own[:1])[0] in now
    assert shards_of(dataset, ids[:1])[0] in now


@given(one_or_several, kinds, seeds)
def test_other_seeds_give_other_streams(dataset, config, seed) -> None:
    if dataset.manifest.num_images < 20:
        return
    ids = [build_order(dataset, config, seed + n).ids(0, 200) for n in range(3)]
    assert not np.array_equal(ids[0], ids[1]) or not np.array_equal(ids[0], ids[2])


@given(datasets(), kinds, seeds, positions)
def test_a_dataset_of_one_part_has_the_stream_of_the_kind_itself(
    dataset, config, seed, position
) -> None:
    part = dataset.parts[0]
    alone: Order = config.build(part=part, seed=seed)
    built = build_order(Dataset.of_part(part), config, seed)
    assert type(built) is type(alone)
    assert np.array_equal(built.ids(position, 100), alone.ids(position, 100))


@given(several, kinds, seeds)
@settings(max_examples=20)
def test_each_part_goes_through_its_own_order(dataset, config, seed) -> None:
    """What a part has in the mixture is the stream that it has alone, with a seed of its own."""
    order = build_order(dataset, config, seed)
    ids = order.ids(0, 3 * BLOCK * order.unit)
    for number, part in enumerate(dataset.parts):
        own = ids[part_of(dataset, ids) == number] - part.first_sample
        alone: Order = config.build(part=part, seed=part_seed(seed, number))
        assert np.array_equal(own, alone.ids(0, len(own)))


@given(several, st.integers(1, 4), seeds)
@settings(max_examples=20)
def test_each_part_of_a_shuffle_has_whole_epochs_of_its_own(dataset, window, seed) -> None:
    ids = build_order(dataset, Shuffle(window_shards=window), seed).ids(0, 3 * BLOCK)
    for number, part in enumerate(dataset.parts):
        own = ids[part_of(dataset, ids) == number] - part.first_sample
        size = part.manifest.num_images
        for epoch in range(len(own) // size):
            assert np.array_equal(np.sort(own[epoch * size :][:size]), np.arange(size))
        rest = own[len(own) // size * size :]
        assert len(np.unique(rest)) == len(rest)


@given(several, kinds, seeds, st.integers(0, 10**6))
def test_shares_are_exact_in_every_block_of_units(dataset, config, seed, block) -> None:
    order = build_order(dataset, config, seed)
    size = BLOCK * order.unit
    units = part_of(dataset, order.ids(block * size, size)).reshape(BLOCK, order.unit)
    assert (units == units[:, :1]).all(), "a unit is of one part"
    counts = np.bincount(units[:, 0], minlength=len(dataset.parts))
    assert np.array_equal(counts, quotas(dataset.shares))


@given(st.lists(st.integers(1, 100), min_size=2, max_size=10))
def test_quotas_are_the_shares_rounded(weights) -> None:
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    slots = quotas(shares)
    assert slots.sum() == BLOCK
    assert all(abs(n - share * BLOCK) < 1 for n, share in zip(slots.tolist(), shares, strict=True))


def test_of_equal_remainders_the_earlier_is_rounded_up() -> None:
    assert quotas([Fraction(1, 3)] * 3).tolist() == [334, 333, 333]
    assert quotas([Fraction(1, 1000), Fraction(999, 1000)]).tolist() == [1, 999]


def test_parts_and_blocks_and_seeds_differ() -> None:
    parts = [made_part([50] * 4, name=name) for name in ("a", "b")]
    dataset, config = made_dataset(parts, [1, 1]), Shuffle(window_shards=2)
    ids = build_order(dataset, config, 1).ids(0, 2 * BLOCK)
    owner = part_of(dataset, ids)
    assert not np.array_equal(owner[:BLOCK], owner[BLOCK:])
    assert not np.array_equal(ids[owner == 0], ids[owner == 1] - 200)
    assert not np.array_equal(ids, build_order(dataset, config, 2).ids(0, 2 * BLOCK))


# P identities x K images over a mixture.


@given(several, pks, seeds, st.integers(0, 10**6))
def test_pk_over_a_mixture_holds_whole_groups(dataset, config, seed, group) -> None:
    """From any multiple of K on, each K samples are of one identity."""
    order = build_order(dataset, config, seed)
    labels = dataset.labels(order.ids(group * order.unit, 200 * order.unit))
    groups = labels.reshape(-1, config.images_per_identity)
    assert (groups == groups[:, :1]).all()


@given(several, pks, seeds)
def test_pk_over_a_mixture_shows_each_parts_identities_equally_often(dataset, config, seed) -> None:
    order = build_order(dataset, config, seed)
    ids = order.ids(0, 2 * BLOCK * order.unit)
    part_N, label_N = part_of(dataset, ids), dataset.labels(ids)
    for number, part in enumerate(dataset.parts):
        people = part.manifest.num_identities
        own = label_N[part_N == number].reshape(-1, order.unit)[:, 0] - part.first_class
        for turn in range(len(own) // people):  # each round of the part has every identity once
            assert np.array_equal(np.sort(own[turn * people :][:people]), np.arange(people))
        rest = own[len(own) // people * people :]
        assert len(np.unique(rest)) == len(rest)
        own_ids = ids[part_N == number] - part.first_sample
        times = np.bincount(own_ids, minlength=part.manifest.num_images)
        for identity in range(people):
            of_theirs = times[part.identity_N == identity]
            assert of_theirs.max() - of_theirs.min() <= 1


def people(counts: list[int], weights: list[int]) -> Dataset:
    """A dataset with so many identities in each part, two images each."""
    parts = [
        made_part([2 * count], uneven_identities(2 * count, count), f"part-{number}")
        for number, count in enumerate(counts)
    ]
    return made_dataset(parts, weights)


@pytest.mark.parametrize(
    ("counts", "weights", "batch", "message"),
    [
        ([10], [1], 40, None),
        (
            [10],
            [1],
            44,
            "data.order pk: a batch of 11 x 4 needs 11 identities, part-0 has 10; lower "
            "train.batch_size",
        ),
        ([6, 3], [2, 1], 36, None),
        (
            [7, 3],
            [2, 1],
            40,
            "data.order pk: a batch of 10 x 4 takes 4 identities from part-1, which has 3; lower "
            "train.batch_size, or its weight in data.mixture",
        ),
        (
            [6, 30],
            [2, 1],
            40,
            "data.order pk: a batch of 10 x 4 takes 7 identities from part-0, which has 6; lower "
            "train.batch_size, or its weight in data.mixture",
        ),
    ],
)
def test_pk_needs_enough_identities_of_each_part(
    counts: list[int], weights: list[int], batch: int, message: str | None
) -> None:
    dataset, config = people(counts, weights), PK(images_per_identity=4)
    if message is None:
        check_sizes(dataset, config, batch)
        return
    with pytest.raises(UserError) as told:
        check_sizes(dataset, config, batch)
    assert str(told.value) == message
    check_sizes(dataset, Shuffle(), batch)


# A checkpoint of an older version must go on with the same samples: these values may never change.
# Those of shuffle, pk and the mixtures by shuffle are of commit 314b193.

COUNTS = [np.arange(20, 32) % 17 + 3, np.array([7, 30, 1, 12, 25]), np.array([9])]
POSITIONS = (0, 5, 999, 1000, 4321, 10**6 + 17, 10**9 + 3)


def old_identities(num_images: int) -> np.ndarray:
    return (np.arange(num_images) * 7919 % 104729 % 19).astype(np.uint32)


def old_dataset(weights: list[int]) -> Dataset:
    parts = [
        made_part(counts, old_identities(int(counts.sum())), str(number))
        for number, counts in enumerate(COUNTS[: len(weights)])
    ]
    return made_dataset(parts, weights)


@pytest.mark.parametrize(
    ("config", "weights", "some", "digest"),
    [
        (Shuffle(window_shards=4), [1], [62, 8, 16, 12, 60, 9, 77, 82], "5317f986309bd20e"),
        (PK(images_per_identity=4), [1], [27, 10, 66, 38, 24, 16, 86, 72], "e5f7ab114655e029"),
        (
            Shuffle(window_shards=4),
            [3, 1],
            [170, 38, 28, 93, 102, 27, 97, 6],
            "e2416fba612255ab",
        ),
        (
            Shuffle(window_shards=4),
            [1, 1, 1],
            [218, 22, 69, 184, 76, 206, 98, 176],
            "8b77f593b7411700",
        ),
        (
            PK(images_per_identity=4),
            [3, 1],
            [37, 130, 18, 102, 88, 106, 13, 120],
            "ed1303925fa222c0",
        ),
    ],
    ids=["shuffle", "pk", "mixture of two", "mixture of three", "pk over a mixture"],
)
def test_streams_are_stable_over_versions(
    config: OrderKind, weights: list[int], some: list[int], digest: str
) -> None:
    order = build_order(old_dataset(weights), config, 5)
    assert order.ids(999, 8).tolist() == some
    whole = hashlib.sha256()
    for position in POSITIONS:
        whole.update(order.ids(position, 300).astype("<i8").tobytes())
    assert whole.hexdigest()[:16] == digest


def test_the_mixture_of_before_across_a_block() -> None:
    dataset = made_dataset([made_part([4, 4], name="a"), made_part([3], name="b")], [2, 1])
    order = build_order(dataset, Shuffle(window_shards=1), 0)
    assert order.ids(BLOCK - 4, 12).tolist() == [8, 10, 0, 3, 1, 9, 10, 5, 4, 6, 7, 7]
