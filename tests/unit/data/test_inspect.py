"""What is broken in a dataset is found and named; what is in it is counted and shown."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from manyfaces.configs import schema
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import UserError
from manyfaces.configs.transforms.flip import Flip
from manyfaces.data.conversion.report import HISTOGRAM
from manyfaces.data.dataset import check, inspect
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.store.samples import Store
from manyfaces.train.__main__ import main

END = b"\xff\xd9"


@pytest.fixture
def copy(dataset_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset_path, tmp_path / "copy"))


def damage(folder: Path, sample: int, change) -> str:
    """Change a sample's bytes in its shard, keeping their number; returns its key."""
    part = open_part(folder)
    shard = part.shard_path(int(part.shard_N[sample]))
    body, at, size = (
        bytearray(shard.read_bytes()),
        int(part.offset_N[sample]),
        int(part.size_N[sample]),
    )
    body[at : at + size] = change(bytes(body[at : at + size])).ljust(size, b"\0")
    shard.write_bytes(body)
    return part.name(sample).partition(":")[2]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes is tested once; the rest need not wait for them."""
    monkeypatch.setattr(check, "run_parallel", lambda tasks, *_: [task() for task in tasks])
    check._tools.cache_clear()


def test_a_whole_dataset_on_all_cores(dataset_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.undo()
    assert main(["data", "check", str(dataset_path), "--processes", "2"]) == 0
    assert "every image decoded: all whole" in capsys.readouterr().out
    (dataset_path / check.CHECK).unlink()


def test_every_kind_of_damage_is_named_by_shard_and_key(copy: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(check, "_PIECE", 10)  # shards in several pieces are still told of once
    keys = {
        3: damage(copy, 3, lambda jpeg: jpeg[: len(jpeg) // 2]),  # cut off
        40: damage(copy, 40, lambda jpeg: b"<html>not found</html>"),
        41: damage(copy, 41, lambda jpeg: jpeg[:20] + bytes(200) + jpeg[220:]),  # no header
        70: damage(
            copy, 70, lambda jpeg: (jpeg[: len(jpeg) // 2] + END).ljust(len(jpeg) - 2, b"\0") + END
        ),  # cut off, but for its end
    }
    assert main(["data", "check", str(copy)]) == 2
    out, error = capsys.readouterr()
    assert out.count("other bytes than when it was indexed") == 3
    assert re.search(r"broken in 7 places, listed in .*check\.json", error)
    report = json.loads((copy / check.CHECK).read_text())["broken"]
    assert {row["sample"]: row["key"] for row in report if row["key"]} == keys
    for sample, key in keys.items():
        assert f"shard-{sample // 32:06d}.tar:{key}: " in out
    assert "data missing" in next(row["reason"] for row in report if row["sample"] == 70)


def test_more_than_twenty_lines_are_only_in_the_file(copy: Path, capsys) -> None:
    for sample in range(25):
        damage(copy, sample, lambda jpeg: b"")
    assert main(["data", "check", str(copy)]) == 2
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 21
    assert "and 6 more, all in" in out
    assert len(json.loads((copy / check.CHECK).read_text())["broken"]) == 26


def test_a_missing_a_shorter_and_an_empty_shard(copy: Path) -> None:
    (copy / "shard-000001.tar").unlink()
    (copy / "shard-000002.tar").write_bytes((copy / "shard-000002.tar").read_bytes()[:-9000])
    (copy / "shard-000003.tar").write_bytes(b"")
    faults = check.check(open_part(copy))
    whole = {fault["shard"]: fault["reason"] for fault in faults if fault["key"] is None}
    assert whole["shard-000001.tar"] == "missing (32 images)"
    assert "expected" in str(whole["shard-000002.tar"])
    assert "0 bytes, expected" in str(whole["shard-000003.tar"])
    samples = [fault["sample"] for fault in faults if fault["key"]]
    assert samples[0] > 64  # what is left of the shorter shard is whole
    assert samples[-24:] == list(range(96, 120))


def test_a_label_that_no_class_has(copy: Path) -> None:
    manifest = json.loads((copy / "manyfaces.json").read_text())
    manifest["num_identities"] = 19
    (copy / "manyfaces.json").write_text(json.dumps(manifest))
    faults = check.check(open_part(copy))
    assert len(faults) == 6
    assert all(fault["reason"] == "label 19 is not in [0, 19)" for fault in faults)
    with pytest.raises(UserError, match="data check"):
        inspect.stats(open_part(copy))


def test_another_index(copy: Path) -> None:
    body, column = (copy / "index.arrow").read_bytes(), open_part(copy).identity_N.tobytes()
    (copy / "index.arrow").write_bytes(body.replace(column, column[4:] + column[:4]))
    assert any(fault["shard"] == "index.arrow" for fault in check.check(open_part(copy)))


def test_stats_are_a_plain_count(dataset, dataset_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(inspect, "_CHUNK", 50)
    found = inspect.stats(dataset.part)
    counted = Counter(dataset.part.identity_N.tolist())
    assert found.images_of_identity_C.tolist() == [counted[i] for i in range(20)]
    assert found.jpeg_bytes == (
        dataset.part.size_N.min(),
        dataset.part.size_N.mean(),
        dataset.part.size_N.max(),
    )
    assert found.shard_bytes == sum(p.stat().st_size for p in dataset_path.glob("*.tar"))
    assert (found.median, found.deciles, found.sizes) == (6, [6] * 9, [((112, 112), 120)])
    assert main(["data", "stats", str(dataset_path)]) == 0
    assert "min 6, median 6, mean 6.0, max 6" in capsys.readouterr().out
    assert cv2.imread(str(dataset_path / HISTOGRAM)) is not None
    (dataset_path / HISTOGRAM).unlink()


def test_sizes_are_read_from_headers_where_images_differ(copy: Path, capsys) -> None:
    manifest = json.loads((copy / "manyfaces.json").read_text())
    manifest["image_px"] = None
    (copy / "manyfaces.json").write_text(json.dumps(manifest))
    small = cv2.imencode(".jpg", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    damage(copy, 5, lambda jpeg: small)
    damage(copy, 6, lambda jpeg: b"")
    assert inspect.stats(open_part(copy)).sizes == [((112, 112), 118), ((20, 30), 1), (None, 1)]
    assert main(["data", "stats", str(copy)]) == 0
    assert "112x112 98.3%, 30x20 0.8%, unreadable 0.8% of 120" in capsys.readouterr().out


def test_an_identity_by_class_id_and_by_name(dataset, tmp_path: Path, capsys) -> None:
    """Each tile of the grid is OpenCV's picture of one of the identity's images."""
    for word in ("17", "synthetic-7-00000017"):
        what, broken = inspect.sample(dataset.part, tmp_path / "grid.png", identity=word)
        assert (what, broken) == ("identity 17 (synthetic-7-00000017), 6 of its 6 images", 0)
        grid = cv2.imread(str(tmp_path / "grid.png"))
        assert grid.shape == (2 * 112, 3 * 112, 3)
        blobs = Store(dataset.part).read(np.flatnonzero(dataset.part.identity_N == 17))
        for tile, blob in enumerate(blobs):
            y, x = 112 * (tile // 3), 112 * (tile % 3)
            assert (
                np.abs(
                    grid[y : y + 112, x : x + 112].astype(int)
                    - cv2.imdecode(blob, cv2.IMREAD_COLOR)
                ).mean()
                < 1
            )
    assert (
        main(
            [
                "data",
                "sample",
                str(dataset.part.path),
                "--identity",
                "17",
                "--count",
                "2",
                "--out",
                str(tmp_path / "two.png"),
            ]
        )
        == 0
    )
    assert "2 of its 6 images" in capsys.readouterr().out


def test_random_images_follow_the_seed(dataset, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        inspect.sample(dataset.part, tmp_path / f"{name}.png", count=9, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("image_px", [64, (96, 40)], ids=str)
def test_augmented_rows_begin_with_the_image_itself(dataset, tmp_path: Path, image_px) -> None:
    config = schema.Config(
        model=MobileFaceNet(),
        data=schema.Data(augment=(Flip(p=1.0),), image_px=image_px),
        head=schema.Head(),
    )
    inspect.sample(dataset.part, tmp_path / "grid.png", identity="3", config=config)
    height, width = config.data.image_hw
    grid = torch.from_numpy(cv2.imread(str(tmp_path / "grid.png")))
    tiles = grid.reshape(6, height, 8, width, 3).transpose(1, 2)
    for column in range(1, 8):
        assert torch.equal(tiles[:, column], tiles[:, 0].flip(2))


def test_broken_images_are_left_out_of_the_grid(copy: Path, tmp_path: Path) -> None:
    rows = np.flatnonzero(open_part(copy).identity_N == 4)
    damage(copy, int(rows[0]), lambda jpeg: b"")
    assert inspect.sample(open_part(copy), tmp_path / "grid.png", identity="4")[1] == 1
    for row in rows:
        damage(copy, int(row), lambda jpeg: b"")
    with pytest.raises(UserError, match="no image to show"):
        inspect.sample(open_part(copy), tmp_path / "grid.png", identity="4")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--identity", "20"], r"no identity '20': give a class id in \[0, 20\)"),
        (["--identity", "nobody"], "no identity 'nobody'"),
        (["--out", "nowhere/grid.png"], "is its folder there"),
        (["--out", "grid.gif"], "ends in .png or .jpg"),
        (["--augmented", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_refusals_are_one_line(
    dataset_path: Path, tmp_path: Path, monkeypatch, capsys, words: list[str], answer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "sample", str(dataset_path), "--out", "grid.png", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(answer, error)
    assert len(error.splitlines()) == 1
