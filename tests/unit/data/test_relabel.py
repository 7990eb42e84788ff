"""Edits change labels and move nothing else; each is compared with loops over the index."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from manyfaces.configs.orders.pk import PK
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data, UserError
from manyfaces.data.dataset.compact import compact
from manyfaces.data.dataset.dataset import join, open_dataset, open_part
from manyfaces.data.dataset.forget import forget
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.manifest import EDITS, FORGOTTEN, INDEX
from manyfaces.data.dataset.relabel import read_lines, relabel
from manyfaces.data.feed.loader import IGNORED, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.orders.build import build_order
from manyfaces.data.store import samples as store
from manyfaces.train.cli.data import relabel_samples


@pytest.fixture
def folder(dataset, tmp_path):
    """A copy that may be written to."""
    return shutil.copytree(dataset.part.path, tmp_path / "mine")


def edit(folder, tmp_path, *lines):
    """The part opened anew after these edits."""
    (tmp_path / "edits.txt").write_text("".join(f"{line}\n" for line in lines))
    relabel(open_part(folder), read_lines(tmp_path / "edits.txt"), processes=1)
    return open_part(folder)


def some(part, count, seed=0):
    """Rows and their keys."""
    rows = np.sort(np.random.default_rng(seed).permutation(part.manifest.num_images)[:count])
    return rows.tolist(), part.keys(rows)


def test_each_edit_changes_the_labels_that_it_names_and_no_byte(folder, tmp_path) -> None:
    part = open_part(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    expected = part.identity_N.astype(int).tolist()
    rows, keys = some(part, 9)
    for row in range(len(expected)):  # 3 becomes 5, which becomes 7
        if expected[row] in (3, 5):
            expected[row] = 7
    expected[rows[0]], expected[rows[1]] = 2, 7
    expected[rows[2]] = int(part.identity_N[rows[2]])  # a dropped one stands under its old one
    edited = edit(
        folder,
        tmp_path,
        f"relabel\t{keys[0]}\t2\tflip\t0.25",
        f"relabel\t{keys[1].split(':')[1]}.jpg\t3",
        f"drop\t{keys[2]}\toutlier",
        "merge\t3\t5\tnear\t0.7",
        "merge\t5\t7",
    )
    assert edited.identity_N.tolist() == expected
    assert edited.indexed_identity_N.tolist() == part.identity_N.tolist()
    assert edited.edits.dropped.tolist() == [rows[2]]
    assert edited.manifest.fingerprint == part.manifest.fingerprint
    assert all((folder / name).read_bytes() == body for name, body in before.items())
    forgotten = read_forgotten_part(edited)
    assert forgotten.samples.tolist() == [rows[2]]
    assert forgotten.identities.tolist() == [3, 5]  # they have no image left
    told = pa.ipc.open_file(str(folder / EDITS)).read_all().to_pylist()
    (flip,) = [line for line in told if line["row"] == rows[0]]
    assert flip == {"row": rows[0], "identity": 2, "reason": "flip", "score": 0.25}
    (folder / EDITS).unlink()
    assert open_part(folder).identity_N.tolist() == part.identity_N.tolist()


def test_a_later_command_adds_and_may_take_back(folder, tmp_path) -> None:
    part = open_part(folder)
    rows, keys = some(part, 2)
    edit(folder, tmp_path, f"drop\t{keys[0]}", f"relabel\t{keys[1]}\t0")
    own = int(part.identity_N[rows[0]])
    back = edit(folder, tmp_path, f"relabel\t{keys[0]}\t{own}")
    assert rows[0] not in back.edits.row_n
    merged = edit(folder, tmp_path, "merge\t0\t1")  # takes along what was given to 0
    assert merged.identity_N[rows[1]] == 1
    assert not (merged.identity_N == 0).any()


@pytest.mark.parametrize("order", [Shuffle(window_shards=2), PK()])
def test_no_order_moves(folder, tmp_path, order) -> None:
    before = build_order(open_dataset(folder), order, 3).ids(0, 500)
    _, keys = some(open_part(folder), 6)
    edit(
        folder,
        tmp_path,
        "merge\t3\t5",
        *(f"relabel\t{k}\t1" for k in keys[:3]),
        *(f"drop\t{k}" for k in keys[3:]),
    )
    assert build_order(open_dataset(folder), order, 3).ids(0, 500).tolist() == before.tolist()


def test_a_loader_gives_the_new_labels_with_the_same_images(folder, tmp_path) -> None:
    def batches():
        dataset = open_dataset(folder)
        with Loader(
            dataset,
            Data(order=Shuffle(window_shards=2)),
            seed=1,
            batch_size=32,
            rank=0,
            world_size=1,
            position=0,
            end=128,
            device=torch.device("cpu"),
            quarantine=Quarantine(tmp_path / "quarantine.jsonl", dataset, 0.001),
        ) as loader:
            return list(loader)

    before = batches()
    gone, moved = (int(before[0].ids_N[slot]) for slot in (2, 9))
    keys = open_part(folder).keys(np.array([gone, moved]))
    edit(folder, tmp_path, f"drop\t{keys[0]}", f"relabel\t{keys[1]}\t11", "merge\t4\t6")
    for old, new in zip(before, batches(), strict=True):
        assert old.ids_N.tolist() == new.ids_N.tolist()
        for slot, sample in enumerate(old.ids_N.tolist()):
            label = {4: 6}.get(int(old.labels_N[slot]), int(old.labels_N[slot]))
            label = {gone: IGNORED, moved: 11}.get(sample, label)
            assert new.labels_N[slot] == label
            if sample != gone:
                assert torch.equal(old.images["main"][slot], new.images["main"][slot])
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_compact_makes_them_real(folder, tmp_path) -> None:
    rows, keys = some(open_part(folder), 2)
    edited = edit(folder, tmp_path, f"drop\t{keys[0]}", "merge\t3\t5")
    compact(edited, tmp_path / "small", processes=1)
    small = open_part(tmp_path / "small")
    kept = np.delete(np.arange(edited.manifest.num_images), rows[0])
    names, all_names = (
        (part.path / "identities.txt").read_text().splitlines() for part in (small, edited)
    )
    assert [names[i] for i in small.identity_N] == [all_names[i] for i in edited.identity_N[kept]]
    assert all_names[3] not in names
    assert small.edits is None
    assert not (small.path / EDITS).exists()
    for ours, theirs in zip(
        store.Store(small).read(range(len(kept))), store.Store(edited).read(kept), strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_who_is_forgotten_stays_so_whatever_is_edited(folder, tmp_path) -> None:
    part = open_part(folder)
    of_three = np.flatnonzero(part.identity_N == 3)
    forget(part, ["3"], [], processes=1)
    edited = edit(folder, tmp_path, "merge\t3\t5")
    mask = read_forgotten_part(edited).mask(np.arange(len(part.identity_N)), edited.identity_N)
    assert np.flatnonzero(mask).tolist() == of_three.tolist()
    edited = edit(folder, tmp_path, "merge\t8\t9")
    forget(edited, ["9"], [], processes=1)  # with those who were given this identity
    (folder / EDITS).unlink()
    left = open_part(folder)
    mask = read_forgotten_part(left).mask(np.arange(len(part.identity_N)), left.identity_N)
    assert set(left.identity_N[mask].tolist()) == {3, 8, 9}
    assert mask.sum() == np.isin(left.identity_N, [3, 8, 9]).sum()


def test_forgetting_an_image_does_not_forget_who_was_moved_away(folder, tmp_path) -> None:
    """The image is the last of an identity whose others were given to another one."""
    part = open_part(folder)
    last, *others = part.keys(np.flatnonzero(part.identity_N == 3))
    edited = edit(folder, tmp_path, *(f"relabel\t{key}\t5" for key in others))
    forget(edited, [], [last], processes=1)
    assert json.loads((folder / FORGOTTEN).read_text())["identities"] == []
    told = read_forgotten_part(open_part(folder))
    assert told.identities.tolist() == [3]
    assert told.samples.tolist() == [int(np.flatnonzero(part.identity_N == 3)[0])]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["away\tx"], r"edits\.txt:1: is no edit; give `drop"),
        (["relabel\tx"], r"edits\.txt:1: is no edit"),
        (["drop\tx\twhy\tmuch"], r"edits\.txt:1: the score much is no number"),
        (["", ""], r"has no edit"),
        (["drop\tnot/there"], "no sample with key not/there"),
        (["merge\t3\tnobody"], "no identity nobody"),
        (["merge\t3\t4", "merge\t4\t3"], r"edits\.txt:1: 3 is merged in a circle"),
        (["merge\t3\t3"], "3 is merged in a circle"),
        (["merge\t3\t4", "merge\t3\t5"], r"edits\.txt:2: 3 is merged twice"),
        (["drop\t{key}", "relabel\t{key}\t0"], r"edits\.txt:2: .* is edited by .*:1 too"),
    ],
)
def test_mistakes_change_nothing(folder, tmp_path, lines, message) -> None:
    ((key,),) = (some(open_part(folder), 1)[1],)
    with pytest.raises(UserError, match=message):
        edit(folder, tmp_path, *(line.format(key=key) for line in lines))
    assert not (folder / EDITS).exists()


def test_edits_of_another_index_or_damaged_are_never_passed_over(folder, tmp_path) -> None:
    edit(folder, tmp_path, "merge\t3\t5")
    body = (folder / EDITS).read_bytes()
    sha = open_part(folder).manifest.index_sha256.encode()
    (folder / EDITS).write_bytes(body.replace(sha, b"0" * 64))
    with pytest.raises(UserError, match=r"edits\.arrow: is of another index"):
        open_part(folder)
    (folder / EDITS).write_bytes(body[:100])
    with pytest.raises(UserError, match=r"edits\.arrow: cannot be read .*; restore it"):
        open_part(folder)


def test_the_command_tells_what_was_edited(folder, tmp_path, capsys) -> None:
    count = int((open_part(folder).identity_N == 3).sum())
    (tmp_path / "edits.txt").write_text("merge\t3\t5\n")
    index = (folder / INDEX).read_bytes()
    relabel_samples(folder, tmp_path / "edits.txt")
    assert f"{count} images relabelled, 0 dropped" in " ".join(capsys.readouterr().out.split())
    assert (folder / INDEX).read_bytes() == index


def test_a_mixture_takes_each_part_with_its_own_edits(folder, tmp_path) -> None:
    edit(folder, tmp_path, "merge\t3\t5")
    (alone,) = join([open_dataset(folder)], [1]).parts
    assert alone.edits is not None
    assert not (alone.identity_N == 3).any()
