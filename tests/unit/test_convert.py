"""Folders in: what comes out, what is dropped, restarts, and refusals."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from manyfaces.configs.schema import UserError
from manyfaces.data import synthetic
from manyfaces.data.convert import convert_folder, synthesise
from manyfaces.data.index import open_dataset, verify
from manyfaces.data.store import Store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for identity in range(6):
        (folder / f"person {identity}").mkdir(parents=True)
        for image in range(3):
            (folder / f"person {identity}" / f"{image}.v1.jpg").write_bytes(synthetic.encode(5, identity, image))
    return folder


def test_bytes_labels_and_names_survive(source: Path, tmp_path: Path) -> None:
    manifest = convert_folder(source, tmp_path / "out", processes=2, shard_images=5)
    assert (manifest.num_images, manifest.num_identities, manifest.image_px) == (18, 6, (112, 112))
    dataset = open_dataset(tmp_path / "out")
    verify(dataset, "hashes")
    names = (tmp_path / "out" / "identities.txt").read_text().splitlines()
    assert sorted(names) == sorted(p.name for p in source.iterdir())
    found = {(names[i], b.tobytes()) for i, b in zip(dataset.identity_N, Store(dataset).read(range(18)), strict=True)}
    assert found == {(p.parent.name, p.read_bytes()) for p in source.rglob("*.jpg")}


def test_class_ids_are_a_seeded_random_order(source: Path, tmp_path: Path) -> None:
    convert_folder(source, tmp_path / "a", processes=1)
    convert_folder(source, tmp_path / "b", processes=1)
    convert_folder(source, tmp_path / "c", processes=1, seed=1)
    a, b, c = ((tmp_path / name / "identities.txt").read_text() for name in "abc")
    assert a == b != c
    assert open_dataset(tmp_path / "a").manifest.fingerprint == open_dataset(tmp_path / "b").manifest.fingerprint


def test_unusable_images_are_named_and_left_out(source: Path, tmp_path: Path) -> None:
    good = (source / "person 0" / "0.v1.jpg").read_bytes()
    (source / "person 1" / "0.v1.jpg").write_bytes(good[:-300])
    (source / "person 2" / "0.v1.jpg").write_bytes(b"")
    cv2.imwrite(str(source / "person 3" / "more.png"), np.full((90, 80, 3), 99, np.uint8))
    manifest = convert_folder(source, tmp_path / "out", processes=2, shard_images=5)
    assert manifest.num_images == 17
    assert manifest.image_px is None
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {Path(row["source"]).parent.name for row in dropped} == {"person 1", "person 2"}


def test_a_killed_conversion_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands after a kill: the plan, some finished shards, one temporary file, no manifest."""
    out = tmp_path / "out"
    whole = convert_folder(source, tmp_path / "whole", processes=1, shard_images=5)
    monkeypatch.setattr("manyfaces.data.write.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_folder(source, out, processes=1, shard_images=5)
    monkeypatch.undo()
    (out / "shard-000002.tar").rename(out / ".shard-000002.tar.tmp-dead")
    kept = (out / "shard-000000.tar").stat().st_ino
    assert convert_folder(source, out, processes=1, shard_images=5).fingerprint == whole.fingerprint
    assert (out / "shard-000000.tar").stat().st_ino == kept
    assert not list(out.glob(".*"))


def test_another_source_into_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    convert_folder(source, tmp_path / "out", processes=1)
    with pytest.raises(UserError, match="already holds shards"):
        synthesise(tmp_path / "out", 3, 2, processes=1)


def test_refusals(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        convert_folder(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "flat").mkdir()
    with pytest.raises(UserError, match="no identity folders"):
        convert_folder(tmp_path / "flat", tmp_path / "out")
    (source / "nobody").mkdir()
    with pytest.raises(UserError, match="no images in nobody"):
        convert_folder(source, tmp_path / "out")


def test_synthetic_datasets_are_the_same_bytes(dataset, tmp_path: Path) -> None:
    manifest = synthesise(tmp_path / "again", 20, 6, seed=7, processes=1, shard_images=32)
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in dataset.manifest.shards]
