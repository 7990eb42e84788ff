"""Several datasets as one stream: exact shares, whole epochs of each part, the same from any
position and at any world size."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_server import Proxy, upload

from manyfaces.configs.identity import identity
from manyfaces.configs.load import load
from manyfaces.configs.schema import Augment, Config, Data, UserError
from manyfaces.data.dataset.forgotten import forget, read_forgotten
from manyfaces.data.dataset.index import Dataset, open_dataset
from manyfaces.data.dataset.mixture import BLOCK, Mixture, MixtureOrder, open_data, quotas
from manyfaces.data.dataset.size import dataset_size
from manyfaces.data.feed.loader import IGNORED, Loader, Quarantine
from manyfaces.data.orders.shuffle import Order
from manyfaces.data.sources.convert import synthesise
from manyfaces.data.store.mapped import Store, Stores

parts = st.lists(
    st.tuples(
        st.lists(st.integers(1, 40), min_size=1, max_size=6).map(np.array), st.integers(1, 50)
    ),
    min_size=2,
    max_size=4,
)
seeds = st.integers(0, 2**32 - 1)
windows = st.integers(1, 4)


def shares_of(weights) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def order_of(parts, seed: int, window: int) -> MixtureOrder:
    return MixtureOrder(
        [samples for samples, _ in parts], shares_of([weight for _, weight in parts]), seed, window
    )


def part_of(order: MixtureOrder, ids):
    return np.searchsorted(order.first_sample, ids, side="right") - 1


@given(parts, seeds, windows)
def test_each_part_goes_through_whole_epochs_of_its_own(parts, seed, window) -> None:
    order = order_of(parts, seed, window)
    ids = order.ids(0, 3 * BLOCK)
    for number, ((samples, _), first) in enumerate(zip(parts, order.first_sample, strict=True)):
        own = ids[part_of(order, ids) == number] - first
        size = samples.sum()
        for epoch in range(len(own) // size):
            assert np.array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))
        rest = own[len(own) // size * size :]
        assert len(np.unique(rest)) == len(rest)


@given(parts, seeds, st.integers(0, 10**9))
def test_shares_are_exact_in_every_block(parts, seed, block) -> None:
    order = order_of(parts, seed, 2)
    counts = np.bincount(part_of(order, order.ids(block * BLOCK, BLOCK)), minlength=len(parts))
    assert np.array_equal(counts, order.quota_P)


@given(st.lists(st.integers(1, 100), min_size=2, max_size=10))
def test_quotas_are_the_shares_rounded(weights) -> None:
    shares = shares_of(weights)
    slots = quotas(shares)
    assert slots.sum() == BLOCK
    assert all(abs(n - share * BLOCK) < 1 for n, share in zip(slots.tolist(), shares, strict=True))


def test_of_equal_remainders_the_earlier_is_rounded_up() -> None:
    assert quotas(shares_of([1, 1, 1])).tolist() == [334, 333, 333]
    assert quotas(shares_of([1, 999])).tolist() == [1, 999]


@given(
    parts,
    seeds,
    windows,
    st.integers(0, 10**7),
    st.lists(st.integers(0, 1500), min_size=1, max_size=4),
)
def test_any_cut_of_the_stream_gives_the_same_stream(parts, seed, window, position, counts) -> None:
    whole = order_of(parts, seed, window).ids(position, sum(counts))
    starts = position + np.cumsum([0, *counts[:-1]])
    # A fresh object for each piece, last first: nothing may depend on what was asked before.
    pieces = [
        order_of(parts, seed, window).ids(int(start), count)
        for start, count in reversed(list(zip(starts, counts, strict=True)))
    ]
    assert np.array_equal(np.concatenate(pieces[::-1]), whole)


@given(parts, seeds, st.integers(1, 64), st.integers(1, 6), st.integers(0, 100))
def test_shares_of_ranks_make_the_global_batch(parts, seed, batch, world, step) -> None:
    batch = max(batch, world)
    order, position = order_of(parts, seed, 2), step * batch
    ranks = [
        order.ids(position + r * batch // world, (r + 1) * batch // world - r * batch // world)
        for r in range(world)
    ]
    assert np.array_equal(np.concatenate(ranks), order.ids(position, batch))


@given(parts, seeds, windows, st.integers(0, 10**6))
def test_what_is_needed_next_is_told(parts, seed, window, position) -> None:
    order = order_of(parts, seed, window)
    shards = np.concatenate([samples for samples, _ in parts])
    now, soon = order.shards(position, 2)
    assert max(len(now), len(soon)) <= window * len(parts)
    ids = order.ids(position, 2 * BLOCK)
    for number in range(len(parts)):  # the next sample of each part is in a window that is near
        sample = ids[part_of(order, ids) == number][0]
        assert np.searchsorted(np.cumsum(shards), sample, side="right") in now


def test_parts_and_blocks_and_seeds_differ() -> None:
    samples = np.full(4, 50)
    order = order_of([(samples, 1), (samples, 1)], 1, 2)
    ids = order.ids(0, 2 * BLOCK)
    owner = part_of(order, ids)
    assert not np.array_equal(owner[:BLOCK], owner[BLOCK:])
    assert not np.array_equal(ids[owner == 0], ids[owner == 1] - 200)
    assert not np.array_equal(ids, order_of([(samples, 1), (samples, 1)], 2, 2).ids(0, 2 * BLOCK))


def test_the_order_is_stable_over_versions() -> None:
    """A checkpoint of an older version must go on with the same samples: these numbers may never
    change."""
    assert (
        order_of([(np.array([4, 4]), 2), (np.array([3]), 1)], 0, 1).ids(BLOCK - 4, 12).tolist()
        == GOLDEN
    )


GOLDEN = [8, 10, 0, 3, 1, 9, 10, 5, 4, 6, 7, 7]

# The joined dataset.


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """10 identities x 5 images in 3 shards."""
    path = tmp_path_factory.mktemp("other") / "made"
    synthesise(path, 10, 5, seed=8, processes=1, shard_images=20)
    return open_dataset(path)


def config_of(*datasets: Dataset | str, **fields) -> Data:
    """Weights fall: of two, the first has two thirds."""
    paths = [d if isinstance(d, str) else str(d.path) for d in datasets]
    mixture = [{"path": path, "weight": len(paths) - n} for n, path in enumerate(paths)]
    return Data.model_validate(
        {
            "order": "mixture",
            "mixture": mixture,
            "augment": Augment(flip=0.5),
            "window_shards": 2,
            **fields,
        }
    )


def batches(config: Data, folder: Path, *, position=0, count=8, rank=0, world=1, size=24):
    dataset = open_data(config)
    with Loader(
        dataset,
        config,
        seed=3,
        batch_size=size,
        rank=rank,
        world_size=world,
        position=position,
        end=position + count * size,
        device=torch.device("cpu"),
        quarantine=Quarantine(folder / "quarantine.jsonl", dataset, 0.001),
    ) as loader:
        return list(loader)


def test_labels_names_and_bytes_are_the_parts_own(dataset, other, tmp_path: Path) -> None:
    mixture = open_data(config_of(dataset, other))
    assert (
        mixture.manifest.num_images,
        mixture.manifest.num_identities,
        len(mixture.manifest.shards),
    ) == (170, 30, 7)
    ids = np.array([0, 119, 120, 169, 121, 5])
    expected = [
        dataset.identity_N[0],
        dataset.identity_N[119],
        *(20 + other.identity_N[[0, 49, 1]]),
        dataset.identity_N[5],
    ]
    assert mixture.labels(ids).tolist() == expected
    assert [mixture.name(i) for i in (119, 120)] == [
        f"{dataset.path}/{dataset.name(119)}",
        f"{other.path}/{other.name(0)}",
    ]
    own = Store(dataset).read([0, 119]) + Store(other).read([0, 49, 1]) + Store(dataset).read([5])
    assert all(map(np.array_equal, Stores(mixture).read(ids), own))


def test_batches_hold_the_shares_and_labels_in_range(dataset, other, tmp_path: Path) -> None:
    told = batches(config_of(dataset, other), tmp_path, count=10, size=100)
    ids, labels = (
        np.concatenate([b.ids_N for b in told]),
        torch.cat([b.labels_N for b in told]).numpy(),
    )
    assert (ids < 120).sum() == 667
    assert (labels[ids < 120] == dataset.identity_N[ids[ids < 120]]).all()
    assert (labels[ids >= 120] == 20 + other.identity_N[ids[ids >= 120] - 120]).all()
    assert labels.max() == 29


def test_restart_from_every_position_gives_the_rest(dataset, other, tmp_path: Path) -> None:
    config, count = config_of(dataset, other), 5
    whole = batches(config, tmp_path, position=BLOCK - 48, count=count)
    for start in range(count):
        rest = batches(config, tmp_path, position=BLOCK - 48 + start * 24, count=count - start)
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert np.array_equal(ours.ids_N, theirs.ids_N)
            assert torch.equal(ours.images_NHWC, theirs.images_NHWC)
            assert torch.equal(ours.labels_N, theirs.labels_N)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_together_make_the_same_global_batch(
    dataset, other, tmp_path: Path, world: int
) -> None:
    config = config_of(dataset, other)
    whole = batches(config, tmp_path, count=2)
    shares = [batches(config, tmp_path, count=2, rank=r, world=world) for r in range(world)]
    for t, batch in enumerate(whole):
        assert torch.equal(torch.cat([s[t].images_NHWC for s in shares]), batch.images_NHWC)
        assert torch.equal(torch.cat([s[t].labels_N for s in shares]), batch.labels_N)


def test_who_is_forgotten_in_a_part_keeps_the_place(dataset, other, tmp_path: Path) -> None:
    mine = open_dataset(shutil.copytree(other.path, tmp_path / "mine"))
    config = config_of(dataset, mine)
    before = batches(config, tmp_path)
    forget(mine, ["4"], [mine.name(7)], processes=1)
    known = read_forgotten(open_data(config))
    assert (known.identities.tolist(), known.samples.tolist()) == ([24], [127])
    hidden = 0
    for old, new in zip(before, batches(config, tmp_path), strict=True):
        assert np.array_equal(old.ids_N, new.ids_N)
        lost = (old.ids_N == 127) | (old.labels_N.numpy() == 24)
        hidden += lost.sum()
        assert (new.labels_N.numpy()[lost] == IGNORED).all()
        assert np.array_equal(new.labels_N.numpy()[~lost], old.labels_N.numpy()[~lost])
    assert hidden > 2


def test_a_corrupt_sample_is_named_with_its_part(dataset, other, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(other.path, tmp_path / "copy"))
    shard = other.manifest.shards[other.shard_N[7]].name
    body = bytearray((copy / shard).read_bytes())
    body[int(other.offset_N[7])] = 0
    (copy / shard).write_bytes(body)
    config = config_of(dataset, str(copy))
    labels = [
        label
        for b in batches(config, tmp_path)
        for i, label in zip(b.ids_N, b.labels_N.tolist(), strict=True)
        if i == 127
    ]
    assert labels
    assert set(labels) == {IGNORED}
    (row,) = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert row["sample"] == 127
    assert row["name"].startswith(f"{copy}/{shard}:")


def test_the_fingerprint_tells_parts_shares_and_their_order(dataset, other, tmp_path: Path) -> None:
    def fingerprint(*mixture: tuple[Dataset, float]) -> str:
        described = [{"path": str(d.path), "weight": w} for d, w in mixture]
        return open_data(
            Data.model_validate({"order": "mixture", "mixture": described})
        ).manifest.fingerprint

    same = [fingerprint((dataset, 2), (other, 1)), fingerprint((dataset, 0.2), (other, 0.1))]
    others = [
        fingerprint((dataset, 1), (other, 1)),
        fingerprint((other, 1), (dataset, 2)),
        fingerprint((other, 2), (dataset, 1)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 4
    copy = open_dataset(shutil.copytree(other.path, tmp_path / "elsewhere"))
    assert fingerprint((dataset, 2), (copy, 1)) == same[0]


def test_near_and_far_parts_together(proxy: Proxy, dataset, other, tmp_path: Path) -> None:
    url = upload(proxy, other.path, "faces", "other")
    near = batches(config_of(dataset, other, window_shards=1), tmp_path, count=6)
    far = batches(
        config_of(str(dataset.path), url, cache_dir=str(tmp_path / "cache"), window_shards=1),
        tmp_path,
        count=6,
    )
    for ours, theirs in zip(far, near, strict=True):
        assert torch.equal(ours.images_NHWC, theirs.images_NHWC)
        assert torch.equal(ours.labels_N, theirs.labels_N)


def test_the_cache_holds_a_window_of_each_far_part(
    proxy: Proxy, dataset, other, tmp_path: Path
) -> None:
    urls = [
        upload(proxy, d.path, "faces", name) for d, name in ((dataset, "first"), (other, "second"))
    ]
    largest = [max(s.bytes for s in d.manifest.shards) for d in (dataset, other)]
    config = config_of(
        *urls, cache_dir=str(tmp_path), window_shards=1, cache_gb=(sum(largest) - 1) / 1e9
    )
    with pytest.raises(
        UserError, match=rf"too small for {urls[0]} \+ {urls[1]}: a window of 2 shards"
    ):
        open_data(config)
    assert isinstance(
        open_data(config.model_copy(update={"cache_gb": sum(largest) / 1e9})), Mixture
    )


def test_one_dataset_is_opened_as_ever(dataset) -> None:
    opened = open_data(Data(path=str(dataset.path)))
    assert isinstance(opened, Dataset)
    order = Order(dataset.samples_per_shard, 3, 2)
    assert [len(w) for w in order.shards(0, 2)] == [2, 2]
    (part,) = opened.parts
    assert part.slots(np.array([5, 3])).tolist() == [0, 1]


# Mistakes, and what a person is told.

MIXED = """model: {kind: iresnet}
data:
  order: mixture
  mixture:
    - {path: a, weight: 3}
    - {path: b}
"""


@pytest.fixture
def recipe(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "r.yaml").write_text(text)
        return tmp_path / "r.yaml"

    return write


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.mixture=[]"],
            r"data: order mixture needs two datasets, mixture has 0; set data\.mixture=",
        ),
        (["data.mixture=[{path: a}]"], "data: order mixture needs two datasets, mixture has 1"),
        (
            ["data.path=c"],
            r"data: order mixture takes its datasets from mixture, but path is c; make it a part, and set \"data\.path=''\"$",
        ),
        (
            ["data.order=shuffle"],
            r"data: mixture has 2 parts, but order is shuffle; set data\.order=mixture or remove them",
        ),
        (["data.order=pk"], "but order is pk"),
        (
            ["data.mixture=[{path: a, weight: 9999}, {path: b}]"],
            r"data: mixture: b with weight 1 has 0\.01% of all; the smallest share is 0\.1%: raise it or leave it out",
        ),
        (
            ["data.mixture=[{path: a}, {path: b, wieght: 2}]"],
            r"data\.mixture\[1\]\.wieght: unknown key; did you mean weight\?",
        ),
        (
            ["data.mixture=[{path: a}, {weight: 2}]"],
            r"data\.mixture\[1\]\.path: is missing; must be text",
        ),
        (
            ["data.mixture=[{path: a}, {path: b, weight: 0}]"],
            r"data\.mixture\[1\]\.weight: must be a number above 0, not 0",
        ),
        (
            ["data.mixture=[a, b]"],
            r"data\.mixture\[0\]: must be a list, each a mapping with the keys path, weight, not 'a'",
        ),
        (
            ["data.mixture.path=a"],
            r"data\.mixture: must be a list, each a mapping with the keys path, weight",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(recipe, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        load(recipe(MIXED), words)
    assert "Input should" not in str(told.value)


def test_the_same_dataset_twice(dataset, tmp_path: Path) -> None:
    copy = open_dataset(shutil.copytree(dataset.path, tmp_path / "copy"))
    with pytest.raises(
        UserError, match=rf"{copy.path} is the same dataset as {dataset.path}; give it once"
    ):
        open_data(config_of(dataset, copy))


def test_a_part_that_is_not_there(dataset) -> None:
    with pytest.raises(UserError, match="dataset nowhere: no such folder"):
        open_data(config_of(dataset, "nowhere"))


def test_another_mixture_is_another_experiment_and_another_folder_is_not(recipe) -> None:
    def keys(config: Config) -> dict[str, object]:
        return {key: value for key, value in identity(config).items() if "mixture" in key}

    assert keys(load(recipe(MIXED))) == {
        "data.mixture[0].weight": 3.0,
        "data.mixture[1].weight": 1.0,
    }
    assert keys(load(recipe(MIXED), ["data.mixture=[{path: c, weight: 3}, {path: d}]"])) == keys(
        load(recipe(MIXED))
    )
    assert keys(load(recipe("model: {kind: iresnet}\n"))) == {}


def test_the_plan_knows_the_parts(dataset, other) -> None:
    images, identities, lines = dataset_size(config_of(dataset, other))
    assert (images, identities) == (170, 30)
    assert [text for _, text in lines] == [
        f"{dataset.path}/manyfaces.json, {other.path}/manyfaces.json",
        f"66.7% from {dataset.path}: 120 images of 20 identities, seen 0.944 times an epoch",
        f"33.3% from {other.path}: 50 images of 10 identities, seen 1.13 times an epoch",
    ]


def test_the_plan_without_the_parts(dataset) -> None:
    config = config_of(dataset, "nowhere")
    with pytest.raises(
        UserError,
        match=r"nowhere/manyfaces\.json is not there; set data\.path or data\.mixture, or data\.expect_images",
    ):
        dataset_size(config)
    assert dataset_size(config.model_copy(update={"expect_images": 7, "expect_identities": 3}))[
        :2
    ] == (7, 3)
