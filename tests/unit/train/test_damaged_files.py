"""Small files with one byte flipped or lost, at every place: they are read, passed over or told in
one line that names them."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_head import write_commit
from safetensors.torch import save_file

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.data.conversion.report import REPORT, lines, write_report
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.dataset.forgotten import parse_forgotten, read_forgotten_part
from manyfaces.data.dataset.manifest import FORGOTTEN, MANIFEST, parse_manifest
from manyfaces.data.dataset.size import dataset_size
from manyfaces.data.dataset.write import Item, Written, write_dataset
from manyfaces.data.sources.source import Dropped
from manyfaces.data.store.shard_cache import ShardCache
from manyfaces.train.checkpoint import state as state_module
from manyfaces.train.checkpoint.commit import Commit, FileFacts, check_commit
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.exported import Exported, read_facts

CONFIG = Config(model=MobileFaceNet(scale=1))


def damaged(body: bytes, every: int = 1) -> Iterator[bytes]:
    """The body with one byte flipped in its lowest or highest bit, or lost."""
    for place in range(0, len(body), every):
        flipped = body[place] ^ (0x80 if place % 4 == 3 else 1 + place % 4)
        yield body[:place] + bytes([flipped]) + body[place + 1 :]
        yield body[:place] + body[place + 1 :]
        yield body[:place]


def survives(read: Callable[[bytes], Any], bodies: Iterator[bytes], name: str) -> None:
    """Each is read without an error or refused in one line with the file's name."""
    refused = []
    for body in bodies:
        try:
            read(body)
        except UserError as error:
            refused.append(str(error))
    assert refused
    for told in refused:
        assert name in told
        assert "\n" not in told
        assert ";" in told  # before the remedy


def from_file(path: Path, read: Callable[[], Any]) -> Callable[[bytes], Any]:
    def written(body: bytes) -> Any:
        path.write_bytes(body)
        return read()

    return written


def test_a_manifest(dataset_path: Path, tmp_path: Path) -> None:
    body = (dataset_path / MANIFEST).read_bytes()
    survives(lambda damaged: parse_manifest(damaged, "x"), damaged(body), f"x/{MANIFEST}")
    shutil.copytree(dataset_path, tmp_path / "faces")
    file, config = tmp_path / "faces" / MANIFEST, CONFIG.data.model_copy()
    config = config.model_copy(update={"path": str(tmp_path / "faces")})
    survives(
        from_file(file, lambda: open_dataset(file.parent)), damaged(body, 13), str(file.parent)
    )
    survives(from_file(file, lambda: dataset_size(config)), damaged(body, 29), str(file))


@pytest.mark.parametrize(
    "change",
    [
        {"shards": []},
        {"num_images": 0},
        {"num_images": -1},
        {"image_px": [0, 112]},
        {"shards": [{"name": "a.tar", "bytes": -1, "samples": 1, "sha256": "0" * 64}]},
        {"shards": [{"name": "a.tar", "bytes": 1, "samples": 0, "sha256": "0" * 64}]},
        {"shards": [{"name": "a.tar", "bytes": 1, "samples": 1, "sha256": "../../../x"}]},
    ],
)
def test_a_manifest_of_what_cannot_be(dataset_path: Path, change: dict[str, Any]) -> None:
    told = {**json.loads((dataset_path / MANIFEST).read_bytes()), **change}
    with pytest.raises(UserError, match=rf"^x/{MANIFEST}: .*; run `manyfaces data index x`$"):
        parse_manifest(json.dumps(told).encode(), "x")


def test_what_is_forgotten(dataset, tmp_path: Path) -> None:
    manifest = dataset.manifest
    told = {"index_sha256": manifest.index_sha256, "identities": [3, 19], "samples": [7, 119]}
    body = json.dumps(told).encode()
    assert parse_forgotten(body, "x", manifest).samples.tolist() == [7, 119]
    survives(lambda body: parse_forgotten(body, FORGOTTEN, manifest), damaged(body), FORGOTTEN)
    for number in (20, -1, 10**30, 2.5, True, "3"):
        changed = json.dumps({**told, "identities": [number]}).encode()
        with pytest.raises(UserError, match=rf"^{FORGOTTEN}: .*; restore it, or remove it and"):
            parse_forgotten(changed, FORGOTTEN, manifest)
    shutil.copytree(dataset.part.path, tmp_path / "faces")
    (tmp_path / "faces" / FORGOTTEN).mkdir()
    with pytest.raises(
        UserError, match=rf"{FORGOTTEN}: cannot be read \(Is a directory\); restore"
    ):
        read_forgotten_part(open_dataset(tmp_path / "faces").part)


def read_or_drop(source: object) -> bytes:
    if source == "bad":
        raise Dropped("not a decodable image")
    assert isinstance(source, bytes)
    return source


def test_what_a_killed_conversion_has_dropped(dataset, tmp_path: Path) -> None:
    part = dataset.part
    with part.shard_path(0).open("rb") as shard:
        shard.seek(int(part.offset_N[0]))
        jpeg = shard.read(int(part.size_N[0]))
    items = [Item(jpeg, "a", 0), Item("bad", "b", 0), Item("bad", "c", 1), Item(jpeg, "d", 1)]
    out, kept = tmp_path / "out", tmp_path / "kept"

    def convert() -> None:
        write_dataset(out, items, read_or_drop, ["anna", "bob"], source={}, processes=1)

    def killed(written: Written) -> None:
        shutil.copytree(out, kept)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(
            out, items, read_or_drop, ["anna", "bob"], source={}, processes=1, report=killed
        )
    [name] = [path.name for path in kept.glob("*.dropped")]
    body = (kept / name).read_bytes()

    def resume(body: bytes) -> None:
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        (out / name).write_bytes(body)
        convert()

    resume(body)
    rows = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["b", "c"]
    survives(resume, damaged(body, 17), str(out / name.removesuffix(".dropped")))
    with pytest.raises(UserError, match=r"shard-000000\.tar: holds 2 of 4 images and 1 are told"):
        resume(body.splitlines(keepends=True)[0])
    (out / name).unlink()
    (out / name.replace(".dropped", ".tar")).unlink()
    convert()  # what the message says to do


def test_a_report(tmp_path: Path) -> None:
    written = Written(
        np.array([0, 0, 1], np.uint32), np.arange(3, dtype=np.uint64), Counter(torn=2), 9
    )
    write_report(tmp_path, written, ["anna", "bob"], {"few": 1}, {"notes": ["a note"]})
    told = lines(tmp_path)
    assert "dropped              3 images: 1 few; 2 torn" in told[1]
    body = (tmp_path / REPORT).read_bytes()
    survives(from_file(tmp_path / REPORT, lambda: lines(tmp_path)), damaged(body), REPORT)


def test_what_other_processes_need(tmp_path: Path) -> None:
    mine, other = (ShardCache(tmp_path, 100, 1, threading.Event()) for _ in range(2))
    other.tell_needs({"a" * 8: 1, "b" * 8: 2})
    [file] = tmp_path.glob(".needs-*")
    body = file.read_bytes()
    for strange in (".part", ".x.part", ".x.y.part", ".x.1.2.part"):
        (tmp_path / strange).touch()
    for each in [b"7", b"[]", b'{"a": "b"}', b'{"a": null}', b"", *damaged(body)]:
        file.write_bytes(each)
        mine._look()
    file.write_bytes(body)
    assert mine._look()[2] == {"a" * 8: 1, "b" * 8: 2}
    other.close()
    mine.close()


def test_a_commit(tmp_path: Path) -> None:
    here = tmp_path / "step-00000001"
    here.mkdir()
    files = {name: FileFacts(bytes=0, sha256="0" * 64) for name in ("state.json", "head/a")}
    body = Commit(format=1, step=1, world_size=1, files=files).model_dump_json(indent=1).encode()
    file = here / "COMMIT.json"
    for each in [b"[" * 100_000, *damaged(body)]:
        file.write_bytes(each)
        assert "\n" not in str(check_commit(here))


def test_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunState(CONFIG, "fingerprint", 7, 3, 2, 20, 1.5, {"head": {"norm_mean": 20.5}})
    file = tmp_path / "state.json"
    file.write_text(state.to_json())
    body = file.read_bytes()
    write_commit(tmp_path)
    assert RunState.read(tmp_path) == state
    # Its bytes are compared with the commit; what follows is about a file that was written so.
    monkeypatch.setattr(state_module, "committed_file", lambda folder, name: folder / name)
    survives(from_file(file, lambda: RunState.read(tmp_path)), damaged(body, 31), str(file))
    for change in (
        {"format": 0},
        {"format": -1},
        {"format": 1e400},
        {"config": []},
        {"config": "x"},
        {"dataset": 7},
        {"num_classes": "7"},
        {"step": -1},
        {"position": 2.5},
        {"seconds": "long"},
        {"numbers": {"head": 1}},
        {"numbers": {"head": {"norm_mean": "x"}}},
        {"mlflow": []},
        {"versions": {"torch": 2}},
        {"edited": 1},
    ):
        file.write_text(json.dumps(json.loads(body) | change))
        with pytest.raises(UserError, match=r"state\.json: ") as told:
            RunState.read(tmp_path)
        assert "\n" not in str(told.value)
    file.write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        RunState.read(tmp_path)


def test_an_exported_file(tmp_path: Path) -> None:
    facts = Exported(
        version="1", source="run, step 1", model=CONFIG.model, image_hw=(112, 96), autocast=False
    )
    file = tmp_path / "face.safetensors"
    save_file({"w": torch.zeros(1)}, file, {"format": "pt", "manyfaces": facts.model_dump_json()})
    assert read_facts(file) == facts
    survives(from_file(file, lambda: read_facts(file)), damaged(file.read_bytes(), 2), str(file))
    for text in ("", "7", "[]", "null", "{", '{"format": 1}', "[" * 100_000):
        save_file({"w": torch.zeros(1)}, file, {"manyfaces": text})
        with pytest.raises(UserError, match=r"face\.safetensors: metadata: .*; export it again"):
            read_facts(file)
