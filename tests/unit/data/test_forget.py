"""Forgotten samples keep their place and nothing else moves."""

import errno
import fcntl
import io
import json
import shutil
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data, UserError
from manyfaces.configs.transforms.flip import Flip
from manyfaces.data.dataset import inspect
from manyfaces.data.dataset.compact import compact
from manyfaces.data.dataset.dataset import open_dataset, open_part
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.dataset.forget import forget
from manyfaces.data.dataset.forgotten import read_forgotten, read_forgotten_part
from manyfaces.data.dataset.index_shards import index_folder
from manyfaces.data.dataset.manifest import FORGOTTEN
from manyfaces.data.dataset.verify import verify
from manyfaces.data.feed.loader import IGNORED, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.store import samples as store
from manyfaces.train.cli.data import check_dataset, forget_samples, show_stats

CONFIG = Data(augment=(Flip(),), order=Shuffle(window_shards=2))


@pytest.fixture
def mine(dataset, tmp_path):
    """A copy that may be written to."""
    return open_dataset(shutil.copytree(dataset.part.path, tmp_path / "mine"))


def batches(dataset, tmp_path, count=4, size=16):
    with Loader(
        dataset,
        CONFIG,
        seed=1,
        batch_size=size,
        rank=0,
        world_size=1,
        position=0,
        end=count * size,
        device=torch.device("cpu"),
        quarantine=Quarantine(tmp_path / "quarantine.jsonl", dataset, 0.001),
    ) as loader:
        return list(loader)


def test_the_order_of_all_others_does_not_move_and_bytes_are_not_read(
    mine, tmp_path, monkeypatch
) -> None:
    before = batches(mine, tmp_path)
    gone = int(before[0].labels_N[3])
    single = int(before[1].ids_N[5])
    key = mine.name(single)
    known = forget(mine.part, [str(gone)], [key], processes=1)
    assert known.identities.tolist() == [gone]
    assert known.samples.tolist() == [single]

    read = []
    real = store.Store.read
    monkeypatch.setattr(
        store.Store,
        "read",
        lambda self, ids: (read.extend(np.asarray(ids).tolist()), real(self, ids))[1],
    )
    after = batches(mine, tmp_path)
    hidden = 0
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.ids_N, new.ids_N)
        lost = np.isin(old.ids_N, single) | (old.labels_N.numpy() == gone)
        hidden += lost.sum()
        assert (new.labels_N.numpy()[lost] == IGNORED).all()
        assert np.array_equal(new.labels_N.numpy()[~lost], old.labels_N.numpy()[~lost])
        assert torch.equal(
            new.images["main"][torch.from_numpy(~lost)], old.images["main"][torch.from_numpy(~lost)]
        )
    assert hidden >= 2
    assert single not in read
    assert gone not in mine.part.identity_N[np.array(read)]
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_it_adds_up_and_an_identity_without_samples_is_gone(mine) -> None:
    forget(mine.part, ["2"], [], processes=1)
    of_one = np.flatnonzero(mine.part.identity_N == 1)
    for number, sample in enumerate(of_one):
        shard, key = mine.name(int(sample)).split(":")
        # A key as people find it: with or without its shard, with or without the suffix.
        known = forget(
            mine.part,
            [],
            [[key, f"{shard}:{key}", key.removesuffix(".jpg")][number % 3]],
            processes=1,
        )
        assert known.identities.tolist() == ([1, 2] if number == len(of_one) - 1 else [2])
    assert read_forgotten(mine).samples.tolist() == of_one.tolist()


def test_compact_leaves_the_others_as_they_are(mine, tmp_path) -> None:
    single = int(np.flatnonzero(mine.part.identity_N != 4)[11])
    known = forget(mine.part, ["4"], [mine.name(single)], processes=1)
    compact(mine.part, tmp_path / "small", processes=1)
    small = open_part(tmp_path / "small")
    verify(small, "hashes")
    kept = np.setdiff1d(np.flatnonzero(mine.part.identity_N != 4), known.samples)
    assert small.manifest.num_images == len(kept)
    assert small.manifest.num_identities == 19
    assert small.manifest.fingerprint != mine.manifest.fingerprint
    for ours, theirs in zip(
        store.Store(small).read(range(len(kept))), store.Store(mine.part).read(kept), strict=True
    ):
        assert np.array_equal(ours, theirs)
    names, all_names = (
        (part.path / "identities.txt").read_text().splitlines() for part in (small, mine.part)
    )
    assert [names[i] for i in small.identity_N] == [
        all_names[i] for i in mine.part.identity_N[kept]
    ]
    assert [small.name(i).split(":")[1] for i in range(len(kept))] == [
        mine.name(int(i)).split(":")[1] for i in kept
    ]
    assert not (small.path / FORGOTTEN).exists()


def test_nobody_is_shown_who_is_forgotten(mine, tmp_path) -> None:
    forget(mine.part, ["4"], [], processes=1)
    with pytest.raises(UserError, match="all of them forgotten"):
        inspect.sample(mine.part, tmp_path / "grid.png", identity="4")
    assert not (tmp_path / "grid.png").exists()


def test_mistakes_change_nothing(mine) -> None:
    with pytest.raises(UserError, match=r"no identity 99999, nobody; give class ids"):
        forget(mine.part, ["0", "99999", "nobody"], [], processes=1)
    with pytest.raises(UserError, match="no sample with key not/there"):
        forget(mine.part, ["0"], ["not/there.jpg"], processes=1)
    assert not (mine.part.path / FORGOTTEN).exists()


def test_a_list_for_another_index_is_never_passed_over(mine) -> None:
    forget(mine.part, ["0"], [], processes=1)
    told = json.loads((mine.part.path / FORGOTTEN).read_text())
    (mine.part.path / FORGOTTEN).write_text(json.dumps({**told, "index_sha256": "0"}))
    with pytest.raises(UserError, match="of another index"):
        read_forgotten(mine)
    (mine.part.path / FORGOTTEN).write_text("{")
    with pytest.raises(UserError, match=r"forgotten\.json: Invalid JSON: .*; restore it, or"):
        read_forgotten(mine)


@pytest.mark.parametrize(
    "tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_every_key_that_a_dataset_tells_can_be_forgotten(
    dataset, tmp_path, tar_format: int
) -> None:
    """Shards of others: names that do not fit a tar header, that are not ASCII, whose suffix is in
    capitals."""
    names = ["plain/0.jpg", "capitals/1.JPG", "why?/2.jpeg", f"{'long/' * 19}{'n' * 30}3.jpg"]
    names += [] if tar_format == tarfile.USTAR_FORMAT else ["Łukasz/4.jpg", f"{'n' * 130}5.jpg"]
    (blob,) = store.Store(dataset.part).read([0])
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        for number, name in enumerate(names):
            for member, body in (
                (name, blob.tobytes()),
                (f"{name.rpartition('.')[0]}.cls", str(number // 2).encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    index_folder(tmp_path, processes=1)
    foreign = open_part(tmp_path)
    keys = foreign.keys(np.arange(len(names)))
    assert keys == [f"a.tar:{name.rpartition('.')[0]}" for name in names]
    for sample, key in enumerate(keys):
        assert sample in forget(foreign, [], [key], processes=1).samples
        assert len(read_forgotten_part(foreign).samples) == sample + 1


def test_pairs_hold_nothing_that_is_forgotten(mine) -> None:
    part = mine.part
    forget(part, ["3", "5"], [], processes=1)
    gone = np.flatnonzero(np.isin(part.identity_N, [3, 5]))
    forgotten = {blob.tobytes() for blob in store.Store(part).read(gone)}
    blobs, _ = draw_pairs(part, 400, seed=0)
    assert not forgotten & set(blobs)


def test_of_two_requests_at_once_none_is_lost(mine, monkeypatch) -> None:
    """The second begins while the first is between reading and writing."""
    import manyfaces.data.dataset.forget as module

    real, first_is_in = module.read_forgotten_file, threading.Event()

    def slow(part):
        known = real(part)
        first_is_in.set()
        time.sleep(0.3)
        return known

    monkeypatch.setattr(module, "read_forgotten_file", slow)
    first = threading.Thread(target=forget, args=(mine.part, ["3"], [], 1))
    first.start()
    first_is_in.wait(10)
    forget(mine.part, ["5"], [], 1)
    first.join()
    assert read_forgotten_part(mine.part).identities.tolist() == [3, 5]


def test_a_file_system_without_locks_is_written_all_the_same(mine, monkeypatch) -> None:
    def not_supported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", not_supported)
    forget(mine.part, ["3"], [], processes=1)
    assert read_forgotten_part(mine.part).identities.tolist() == [3]


def test_stats_and_check_tell_what_is_forgotten(mine, capsys) -> None:
    forget(mine.part, ["3"], [], processes=1)
    show_stats(mine.part.path)
    assert "1 identities and 0 single samples" in capsys.readouterr().out
    check_dataset(mine.part.path, 1)
    assert "checked as all others: 1 identities" in " ".join(capsys.readouterr().out.split())


def test_a_list_of_keys_that_is_no_text_is_one_line(mine, tmp_path) -> None:
    (tmp_path / "keys.txt").write_bytes(b"\xff\xfe/a\n")
    with pytest.raises(UserError, match="no sample with key"):
        forget_samples(mine.part.path, keys=tmp_path / "keys.txt")
    assert not (mine.part.path / FORGOTTEN).exists()
