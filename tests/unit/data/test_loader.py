"""Batches from any position, at any world size, in the face of corrupt samples."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from manyfaces.configs.orders.pk import PK
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data, UserError
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.misalign import Misalign
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.view import View, main_view
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import MAIN

CONFIG = Data(augment=(Misalign(shift_px=2), Flip()), order=Shuffle(window_shards=2))
PK_CONFIG = CONFIG.model_copy(update={"order": PK(images_per_identity=4)})


def load(
    dataset,
    folder: Path,
    *,
    position=0,
    end=None,
    rank=0,
    world=1,
    batch=24,
    config=CONFIG,
    views=None,
):
    quarantine = Quarantine(folder / "quarantine.jsonl", dataset, 0.001)
    end = 10 * batch if end is None else end
    with Loader(
        dataset,
        config,
        seed=3,
        batch_size=batch,
        rank=rank,
        world_size=world,
        position=position,
        end=end,
        device=torch.device("cpu"),
        quarantine=quarantine,
        views=views,
    ) as loader:
        return list(loader)


@pytest.mark.parametrize("config", [CONFIG, PK_CONFIG], ids=["shuffle", "pk"])
def test_restart_from_every_position_gives_the_rest(dataset, tmp_path: Path, config: Data) -> None:
    """Save before every element, restore from each, compare all that follows."""
    whole = load(dataset, tmp_path, end=6 * 24, config=config)
    for start in range(6):
        rest = load(dataset, tmp_path, position=start * 24, end=6 * 24, config=config)
        assert [b.position for b in rest] == [b.position for b in whole[start:]]
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert torch.equal(ours.images["main"], theirs.images["main"])
            assert torch.equal(ours.labels_N, theirs.labels_N)


@pytest.mark.parametrize("config", [CONFIG, PK_CONFIG], ids=["shuffle", "pk"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_together_make_the_same_global_batch(
    dataset, tmp_path: Path, world: int, config: Data
) -> None:
    whole = load(dataset, tmp_path, end=48, config=config)
    shares = [
        load(dataset, tmp_path, end=48, rank=r, world=world, config=config) for r in range(world)
    ]
    for t, batch in enumerate(whole):
        assert torch.equal(torch.cat([s[t].images["main"] for s in shares]), batch.images["main"])
        assert torch.equal(torch.cat([s[t].labels_N for s in shares]), batch.labels_N)


def test_pk_batches_are_of_p_people_with_k_images(dataset, tmp_path: Path) -> None:
    for batch in load(
        dataset, tmp_path, batch=20, end=60, config=PK_CONFIG
    ):  # 20 people: four batches a round
        people = batch.labels_N.view(-1, 4)
        assert (people == people[:, :1]).all()
        assert len(people[:, 0].unique()) == 5
        assert len(np.unique(batch.ids_N)) == 20


def test_a_corrupt_sample_keeps_its_place(dataset_path: Path, dataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    bad = 37
    shard = copy / dataset.manifest.shards[dataset.part.shard_N[bad]].name
    body = bytearray(shard.read_bytes())
    start = int(dataset.part.offset_N[bad]) + 20
    body[start : start + 200] = bytes(200)
    shard.write_bytes(body)
    damaged = open_dataset(copy)
    clean, hurt = load(dataset, tmp_path / "none"), load(damaged, tmp_path)
    seen = 0
    for ours, theirs in zip(hurt, clean, strict=True):
        assert np.array_equal(ours.ids_N, theirs.ids_N)
        here = torch.from_numpy(ours.ids_N == bad)
        seen += int(here.sum())
        assert (ours.labels_N[here] == -1).all()
        assert torch.equal(ours.labels_N[~here], theirs.labels_N[~here])
        assert torch.equal(ours.images["main"][~here], theirs.images["main"][~here])
    assert seen == 2  # two epochs
    (row,) = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert row["sample"] == bad
    assert row["name"].startswith(shard.name + ":")
    # A resumed run knows it from the file and never gives its bytes to DALI.
    assert Quarantine(tmp_path / "quarantine.jsonl", damaged, 0.001).samples == {bad}


def test_a_shard_that_vanishes_is_one_clear_line(dataset_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    opened = open_dataset(copy)
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar: cannot be read"):
        load(opened, tmp_path)


def test_too_many_corrupt_samples_stop_the_run(dataset_path: Path, dataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    for number, shard in enumerate(dataset.manifest.shards):
        body = bytearray((copy / shard.name).read_bytes())
        for sample in np.flatnonzero(dataset.part.shard_N == number)[:4]:
            body[int(dataset.part.offset_N[sample])] = 0
        (copy / shard.name).write_bytes(body)
    with pytest.raises(
        UserError,
        match=r"more than 10 samples cannot be decoded, the last shard-.*; repair the shards",
    ):
        load(open_dataset(copy), tmp_path)


def test_a_share_whose_images_are_all_left_out_is_shown_black(dataset, tmp_path: Path) -> None:
    """One rank's samples are all in quarantine; then all corrupt, and it goes on."""
    end = 8
    ids = load(dataset, tmp_path / "none", batch=8, end=end, rank=1, world=2)[0].ids_N
    (tmp_path / "known").mkdir()
    lines = "\n".join(json.dumps({"sample": sample}) for sample in ids.tolist())
    (tmp_path / "known" / "quarantine.jsonl").write_text(lines)
    copy = Path(shutil.copytree(dataset.part.path, tmp_path / "copy"))
    for sample in ids:
        shard = copy / dataset.manifest.shards[dataset.part.shard_N[sample]].name
        body, at = bytearray(shard.read_bytes()), int(dataset.part.offset_N[sample])
        body[at + 20 : at + 220] = bytes(200)
        shard.write_bytes(body)
    damaged = open_dataset(copy)
    for opened, folder in ((dataset, tmp_path / "known"), (damaged, tmp_path)):
        (batch,) = load(opened, folder, batch=8, end=end, rank=1, world=2)
        assert (batch.labels_N == -1).all()
        assert not batch.images["main"].any()
    found = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["sample"] for line in found) == sorted(ids.tolist())


@pytest.mark.parametrize(
    "line", [b"7", b"null", b"[]", b"{}", b"\xff", b'{"sample": "x"}', b'{"sample": -1}']
)
def test_a_quarantine_line_that_names_no_sample_is_passed_over(
    dataset, tmp_path: Path, line: bytes
) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_bytes(line + b'\n{"sample": 3}')
    assert Quarantine(file, dataset, 0.001).samples == {3}


def test_a_torn_quarantine_line_is_passed_over(dataset, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_text('{"sample": 3}\n{"sample": 4, "na')
    told: list[str] = []
    quarantine = Quarantine(file, dataset, 0.001, told.append)
    assert quarantine.samples == {3}
    quarantine.add(5, 0)
    assert Quarantine(file, dataset, 0.001).samples == {3, 5}
    assert "left out" in told[0]


def test_the_limit_is_of_all_ranks_together(dataset, tmp_path: Path) -> None:
    """Eight ranks find two each of the ten that are allowed."""
    file, told = tmp_path / "quarantine.jsonl", list[str]()
    ranks = [Quarantine(file, dataset, 0.001, told.append) for _ in range(8)]
    for sample in range(10):
        ranks[sample % 8].add(sample, 0)
    ranks[0].add(9, 0)  # what another rank has found counts once
    assert len(told) == len(file.read_text().splitlines()) == 10
    assert ranks[0].samples == set(range(10))
    with pytest.raises(UserError, match="more than 10 samples cannot be decoded"):
        ranks[7].add(99, 0)
    assert Quarantine(file, dataset, 0.001).samples == {*range(10), 99}


LOCAL = View((48, 48), (Misalign(shift_px=6), Flip()))


def test_each_view_shows_the_same_images_in_its_own_way(dataset, tmp_path: Path) -> None:
    plain = load(dataset, tmp_path, end=72)
    views = {MAIN: main_view(CONFIG), "local-0": LOCAL, "local-1": LOCAL}
    for one, several in zip(plain, load(dataset, tmp_path, end=72, views=views), strict=True):
        assert list(one.images) == [MAIN]
        assert list(several.images) == list(views)
        assert torch.equal(one.images[MAIN], several.images[MAIN])
        assert torch.equal(one.labels_N, several.labels_N)
        locals_ = [several.images[name] for name in ("local-0", "local-1")]
        assert all(images.shape == (24, 48, 48, 3) for images in locals_)
        assert all(images.dtype == torch.uint8 for images in locals_)
        assert not torch.equal(*locals_), "each has a stream of its own"


def test_views_restart_and_are_shared_as_batches_are(dataset, tmp_path: Path) -> None:
    views = {MAIN: main_view(CONFIG), "local": LOCAL}
    whole = load(dataset, tmp_path, end=72, views=views)
    (last,) = load(dataset, tmp_path, position=48, end=72, views=views)
    ranks = [
        load(dataset, tmp_path, position=48, end=72, rank=rank, world=3, views=views)[0]
        for rank in range(3)
    ]
    for name in views:
        assert torch.equal(last.images[name], whole[2].images[name])
        assert torch.equal(torch.cat([r.images[name] for r in ranks]), whole[2].images[name])


def test_a_view_without_changes_shows_the_image_as_it_is(dataset, tmp_path: Path) -> None:
    as_it_is = View((112, 112), ())
    (batch,) = load(dataset, tmp_path, end=24, views={"as it is": as_it_is})
    blobs = Store(dataset.part).read(batch.ids_N)
    images, _ = Decoder((112, 112), 24, device=torch.device("cpu"))(blobs)
    assert torch.equal(batch.images["as it is"], images)


def test_a_corrupt_sample_is_left_out_of_all_views_once(dataset, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset.part.path, tmp_path / "copy"))
    shard = copy / dataset.manifest.shards[dataset.part.shard_N[37]].name
    body = bytearray(shard.read_bytes())
    body[int(dataset.part.offset_N[37])] = 0
    shard.write_bytes(body)
    views = {MAIN: main_view(CONFIG), "local": LOCAL}
    labels = [
        label
        for batch in load(open_dataset(copy), tmp_path, views=views)
        for sample, label in zip(batch.ids_N, batch.labels_N.tolist(), strict=True)
        if sample == 37
    ]
    assert labels == [-1, -1]
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 1
