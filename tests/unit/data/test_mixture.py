"""Several datasets as one: their samples and classes one part after the other, batches by their
shares, the same from any position and at any world size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from store_server import Proxy, upload

from manyfaces.configs.identity import identity
from manyfaces.configs.load import load
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Config, Data, UserError
from manyfaces.configs.transforms.flip import Flip
from manyfaces.data.dataset.dataset import Dataset, open_data, open_dataset
from manyfaces.data.dataset.forget import forget
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.size import dataset_size
from manyfaces.data.feed.loader import IGNORED, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.orders import shuffle
from manyfaces.data.orders.build import check_sizes
from manyfaces.data.orders.mixed import BLOCK
from manyfaces.data.store.samples import Store, Stores
from manyfaces.data.synthetic.dataset import synthesise


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """10 identities x 5 images in 3 shards."""
    path = tmp_path_factory.mktemp("other") / "made"
    synthesise(path, 10, 5, seed=8, processes=1, shard_images=20)
    return open_dataset(path)


def config_of(*datasets: Dataset | str, **fields) -> Data:
    """Weights fall: of two, the first has two thirds."""
    paths = [d if isinstance(d, str) else str(d.part.path) for d in datasets]
    mixture = [{"path": path, "weight": len(paths) - n} for n, path in enumerate(paths)]
    return Data.model_validate(
        {
            "mixture": mixture,
            "augment": (Flip(),),
            "order": Shuffle(window_shards=2),
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
        dataset.part.identity_N[0],
        dataset.part.identity_N[119],
        *(20 + other.part.identity_N[[0, 49, 1]]),
        dataset.part.identity_N[5],
    ]
    assert mixture.labels(ids).tolist() == expected
    assert [mixture.name(i) for i in (119, 120)] == [
        f"{dataset.part.path}/{dataset.name(119)}",
        f"{other.part.path}/{other.name(0)}",
    ]
    own = (
        Store(dataset.part).read([0, 119])
        + Store(other.part).read([0, 49, 1])
        + Store(dataset.part).read([5])
    )
    assert all(map(np.array_equal, Stores(mixture).read(ids), own))


def test_batches_hold_the_shares_and_labels_in_range(dataset, other, tmp_path: Path) -> None:
    told = batches(config_of(dataset, other), tmp_path, count=10, size=100)
    ids, labels = (
        np.concatenate([b.ids_N for b in told]),
        torch.cat([b.labels_N for b in told]).numpy(),
    )
    assert (ids < 120).sum() == 667
    assert (labels[ids < 120] == dataset.part.identity_N[ids[ids < 120]]).all()
    assert (labels[ids >= 120] == 20 + other.part.identity_N[ids[ids >= 120] - 120]).all()
    assert labels.max() == 29


def test_restart_from_every_position_gives_the_rest(dataset, other, tmp_path: Path) -> None:
    config, count = config_of(dataset, other), 5
    whole = batches(config, tmp_path, position=BLOCK - 48, count=count)
    for start in range(count):
        rest = batches(config, tmp_path, position=BLOCK - 48 + start * 24, count=count - start)
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert np.array_equal(ours.ids_N, theirs.ids_N)
            assert torch.equal(ours.images["main"], theirs.images["main"])
            assert torch.equal(ours.labels_N, theirs.labels_N)


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_together_make_the_same_global_batch(
    dataset, other, tmp_path: Path, world: int
) -> None:
    config = config_of(dataset, other)
    whole = batches(config, tmp_path, count=2)
    shares = [batches(config, tmp_path, count=2, rank=r, world=world) for r in range(world)]
    for t, batch in enumerate(whole):
        assert torch.equal(torch.cat([s[t].images["main"] for s in shares]), batch.images["main"])
        assert torch.equal(torch.cat([s[t].labels_N for s in shares]), batch.labels_N)


def test_who_is_forgotten_in_a_part_keeps_the_place(dataset, other, tmp_path: Path) -> None:
    mine = open_dataset(shutil.copytree(other.part.path, tmp_path / "mine"))
    config = config_of(dataset, mine)
    before = batches(config, tmp_path)
    forget(mine.part, ["4"], [mine.name(7)], processes=1)
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
    copy = Path(shutil.copytree(other.part.path, tmp_path / "copy"))
    shard = other.manifest.shards[other.part.shard_N[7]].name
    body = bytearray((copy / shard).read_bytes())
    body[int(other.part.offset_N[7])] = 0
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
        described = [{"path": str(d.part.path), "weight": w} for d, w in mixture]
        return open_data(Data.model_validate({"mixture": described})).manifest.fingerprint

    same = [fingerprint((dataset, 2), (other, 1)), fingerprint((dataset, 0.2), (other, 0.1))]
    others = [
        fingerprint((dataset, 1), (other, 1)),
        fingerprint((other, 1), (dataset, 2)),
        fingerprint((other, 2), (dataset, 1)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 4
    copy = open_dataset(shutil.copytree(other.part.path, tmp_path / "elsewhere"))
    assert fingerprint((dataset, 2), (copy, 1)) == same[0]


def test_near_and_far_parts_together(proxy: Proxy, dataset, other, tmp_path: Path) -> None:
    url = upload(proxy, other.part.path, "faces", "other")
    near = batches(config_of(dataset, other, order=Shuffle(window_shards=1)), tmp_path, count=6)
    far = batches(
        config_of(
            str(dataset.part.path),
            url,
            cache_dir=str(tmp_path / "cache"),
            order=Shuffle(window_shards=1),
        ),
        tmp_path,
        count=6,
    )
    for ours, theirs in zip(far, near, strict=True):
        assert torch.equal(ours.images["main"], theirs.images["main"])
        assert torch.equal(ours.labels_N, theirs.labels_N)


def test_the_cache_holds_a_window_of_each_far_part(
    proxy: Proxy, dataset, other, tmp_path: Path
) -> None:
    urls = [
        upload(proxy, d.part.path, "faces", name)
        for d, name in ((dataset, "first"), (other, "second"))
    ]
    largest = [max(s.bytes for s in d.manifest.shards) for d in (dataset, other)]
    config = config_of(
        *urls,
        cache_dir=str(tmp_path),
        order=Shuffle(window_shards=1),
        cache_gb=(sum(largest) - 1) / 1e9,
    )
    with pytest.raises(
        UserError, match=rf"too small for {urls[0]} \+ {urls[1]}: a window of 2 shards"
    ):
        open_data(config)
    opened = open_data(config.model_copy(update={"cache_gb": sum(largest) / 1e9}))
    assert len(opened.parts) == 2


def test_the_cache_holds_all_shards_for_pk(proxy: Proxy, dataset, other, tmp_path: Path) -> None:
    url = upload(proxy, other.part.path, "faces", "for-pk")
    total = sum(shard.bytes for shard in other.manifest.shards)
    config = Data(path=url, cache_dir=str(tmp_path), order=PK(), cache_gb=(total - 1) / 1e9)
    with pytest.raises(
        UserError,
        match=r"too small for .*: a window of 3 shards is .*; set data\.cache_gb=[\d.e-]+ \(two windows "
        r"and some\), or another data\.order: pk needs all shards$",
    ):
        open_data(config)
    assert open_data(config.model_copy(update={"cache_gb": total / 1e9})).parts


def test_one_dataset_is_opened_as_ever(dataset) -> None:
    opened = open_data(Data(path=str(dataset.part.path)))
    assert opened.shares == (1,)
    assert opened.manifest.fingerprint == dataset.manifest.fingerprint
    order = shuffle.Shuffle(dataset.part, 3, 2)
    assert [len(w) for w in order.shards(0, 2)] == [2, 2]
    (part,) = opened.parts
    assert part.slots(np.array([5, 3])).tolist() == [0, 1]


@pytest.mark.parametrize("world", [1, 3])
def test_pk_over_a_mixture_shows_people_of_both(dataset, other, tmp_path: Path, world: int) -> None:
    config = config_of(dataset, other, order=PK(images_per_identity=4))
    check_sizes(open_data(config), config.order, 24)
    ranks = [batches(config, tmp_path, count=20, rank=rank, world=world) for rank in range(world)]
    first_class = open_data(config).parts[1].first_class
    of_first = 0
    for shares in zip(*ranks, strict=True):
        people = torch.cat([batch.labels_N for batch in shares]).view(-1, 4)
        assert (people == people[:, :1]).all()
        of_first += int((people[:, 0] < first_class).sum())
    assert abs(of_first - 20 * 6 * 2 / 3) < 15


def test_a_shuffled_mixture_has_the_batches_of_before(dataset, other, tmp_path: Path) -> None:
    """Ids of commit 314b193: they may never change."""
    (batch,) = batches(config_of(dataset, other), tmp_path, position=5 * BLOCK + 7, count=1)
    assert batch.ids_N[:12].tolist() == [2, 30, 132, 110, 12, 150, 123, 113, 144, 127, 97, 31]
    assert batch.ids_N[12:].tolist() == [1, 118, 28, 120, 9, 124, 145, 5, 18, 20, 100, 25]


# Mistakes, and what a person is told.

MIXED = """model: {kind: iresnet}
data:
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
            ["data.order=mixture", "data.mixture=[]"],
            r"data\.order: mixture needs two datasets; set data\.mixture=",
        ),
        (
            ["data.mixture=[{path: a}]"],
            r"data: mixture needs two datasets, and has one; set data\.path to it, or data\.mixture=",
        ),
        (
            ["data.path=c"],
            r"data: mixture names the datasets, but path is c; make it a part, and set \"data\.path=''\"$",
        ),
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


@pytest.mark.parametrize("kind", ["shuffle", "pk"])
def test_a_mixture_goes_with_every_order(recipe, kind: str) -> None:
    config = load(recipe(MIXED), [f"data.order={kind}"])
    assert config.data.order.word() == kind
    assert len(config.data.mixture) == 2


def test_the_old_spelling_of_a_mixture_is_the_same_experiment(recipe) -> None:
    old = load(recipe(MIXED), ["data.order=mixture", "data.window_shards=16"])
    assert identity(old) == identity(load(recipe(MIXED)))


def test_the_same_dataset_twice(dataset, tmp_path: Path) -> None:
    copy = open_dataset(shutil.copytree(dataset.part.path, tmp_path / "copy"))
    with pytest.raises(
        UserError,
        match=rf"{copy.part.path} is the same dataset as {dataset.part.path}; give it once",
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
        f"{dataset.part.path}/manyfaces.json, {other.part.path}/manyfaces.json",
        f"66.7% from {dataset.part.path}: 120 images of 20 identities, seen 0.944 times an epoch",
        f"33.3% from {other.part.path}: 50 images of 10 identities, seen 1.13 times an epoch",
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
