"""What a preflight asks of the dataset, of the store and of DALI on a node, and how much room a run
needs."""

import shutil
from pathlib import Path

import fsspec
import pytest

from manyfaces.configs.load import load
from manyfaces.configs.schema import Config, UserError
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.train import decode_probe, probes
from manyfaces.train.preflight import asking, checkpoint_bytes, folders


def config(dataset: Path | str, *words: str) -> Config:
    return load("quick/arcface", [f"data.path={dataset}", *words])


def payload(config: Config | None, threads: int = 1) -> dict[str, object]:
    return {"config": config and config.model_dump(mode="json"), "threads": threads}


def test_a_dataset_is_read(dataset_path: Path) -> None:
    facts = probes.dataset(payload(config(dataset_path)))
    manifest = open_dataset(dataset_path).manifest
    assert facts["fingerprint"] == manifest.fingerprint
    assert (facts["images"], facts["identities"]) == (120, 20)
    assert facts["read_bytes_s"] > 0


def test_a_dataset_of_a_url_is_looked_at_and_not_fetched(
    dataset_path: Path, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(dataset_path), "/preflight/faces", recursive=True)
    there = config("memory://preflight/faces", f"data.cache_dir={tmp_path / 'cache'}")
    assert probes.dataset(payload(there))["images"] == 120
    assert not (tmp_path / "cache").exists()
    store.rm(next(path for path in store.ls("/preflight/faces", False) if path.endswith(".tar")))
    with pytest.raises(UserError, match=r"1 shards are missing .*\.tar$"):
        probes.dataset(payload(there))


def test_a_dataset_that_is_not_there(tmp_path: Path, dataset_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        probes.dataset(payload(config(tmp_path / "nowhere")))
    copy = shutil.copytree(dataset_path, tmp_path / "copy")
    next(copy.glob("*.tar")).write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes, expected"):
        probes.dataset(payload(config(copy)))


def test_a_store_is_written(dataset_path: Path) -> None:
    there = config(dataset_path, "run.dir=memory://preflight/runs", "run.name=new")
    assert probes.store(payload(there)) == {}
    assert fsspec.filesystem("memory").find("/preflight/runs") == []
    with pytest.raises(UserError, match="nothing can be written there"):
        probes.store(payload(config(dataset_path, "run.dir=http://127.0.0.1:1/runs")))


def test_images_are_decoded(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_probe, "DECODE_S", 0.1)
    monkeypatch.setattr(decode_probe, "MADE_FACES", 4)
    facts = decode_probe.decode(payload(config(dataset_path), threads=2))
    assert facts["images"] == "dataset"
    assert facts["images_per_s"] == pytest.approx(2 * facts["each"])
    assert facts["each"] > 0
    made = decode_probe.decode(payload(None))
    assert (made["images"], made["count"], made["per"]) == ("made", 1, "core")


def test_which_folders_a_run_writes(dataset_path: Path, tmp_path: Path) -> None:
    near = folders(config(dataset_path, f"run.dir={tmp_path}"))
    assert [(folder.key, folder.is_shared) for folder in near] == [("run.dir", True)]
    far = folders(config("s3://bucket/faces", "run.dir=s3://bucket/runs", "data.cache_gb=7"))
    assert [folder.key for folder in far] == ["run.work_dir", "data.cache_dir"]
    assert far[0].needs_bytes is None  # the dataset's size is not known
    assert far[1].needs_bytes == 7_000_000_000
    wanted = asking(config("s3://bucket/faces", "run.dir=s3://bucket/runs"), 100.0).wanted()
    assert list(wanted.probes) == ["dataset", "run.dir", "decode"]
    assert list(asking(None, None).wanted().probes) == ["decode"]


def test_how_much_room_checkpoints_need(dataset_path: Path) -> None:
    def kept(*words: str) -> int:
        found = checkpoint_bytes(config(dataset_path, "train.epochs=100", *words))
        assert found is not None
        return found

    one = kept("checkpoint.keep=1") // 2  # and one that is being written
    assert one > 1_000_000
    assert kept("checkpoint.keep=3") == 4 * one
    best = ["checkpoint.best.metric=lfw/accuracy", "evaluation.every_steps=1000"]
    assert kept("checkpoint.keep=1", *best) == 3 * one
    steps = -(-100 * 120 // config(dataset_path).train.batch_size)
    often = ["checkpoint.every_steps=10", "checkpoint.keep_every_steps=20"]
    assert kept("checkpoint.keep=1", *often) == (2 + steps // 20) * one
