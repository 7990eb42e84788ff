"""Images that cannot be used are left out: those whose size no face has, before they are decoded."""

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from manyfaces.data.conversion.convert import convert
from manyfaces.data.conversion.pixels import decoded
from manyfaces.data.dataset import write
from manyfaces.data.dataset.manifest import Manifest
from manyfaces.data.sources.source import Dropped


@pytest.mark.parametrize(("suffix", "reason"), [("jpg", "pixels"), ("png", "pixels"), ("bmp", "")])
def test_a_header_with_a_huge_size_drops_its_image_only(
    tmp_path: Path, suffix: str, reason: str
) -> None:
    (tmp_path / "src" / "ann").mkdir(parents=True)
    pixels = np.full((40, 40, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "src" / "ann" / "good.jpg"), pixels)
    body = bytearray(cv2.imencode(f".{suffix}", pixels)[1].tobytes())
    at = {"jpg": body.find(b"\xff\xc0") + 5, "png": 16, "bmp": 18}[suffix]
    body[at : at + 8] = {
        "jpg": b"\xff\xff\xff\xff" + body[at + 4 : at + 8],
        "png": b"\0\0\xff\xff" * 2,
        "bmp": b"\xff\xff\0\0" * 2,
    }[suffix]
    (tmp_path / "src" / "ann" / f"huge.{suffix}").write_bytes(body)
    assert convert([tmp_path / "src"], tmp_path / "out", processes=1).num_images == 1
    (row,) = [json.loads(x) for x in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert row["source"].endswith(f"huge.{suffix}")
    assert reason in row["reason"]


def test_a_format_that_pillow_knows_in_part_drops_its_image_only() -> None:
    """A DDS texture of an unknown compression."""
    header = struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44)
    blob = b"DDS " + header + struct.pack("<2I4s", 32, 4, b"ABCD") + bytes(40)
    with pytest.raises(Dropped, match="not a decodable image"):
        decoded(blob)


def test_a_kill_after_the_manifest_leaves_what_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the shards has no image that can be used."""
    (tmp_path / "src" / "ann").mkdir(parents=True)
    good = cv2.imencode(".jpg", np.full((40, 40, 3), 90, np.uint8))[1].tobytes()
    for number, body in enumerate((good, b"no image", b"nor this")):
        (tmp_path / "src" / "ann" / f"{number}.jpg").write_bytes(body)
    commit = write.commit_shards

    def killed(*given: Any) -> Manifest:
        commit(*given)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(write, "commit_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        convert([tmp_path / "src"], out, processes=1, shard_images=1)
    monkeypatch.setattr(write, "commit_shards", commit)
    assert convert([tmp_path / "src"], out, processes=1, shard_images=1).num_images == 1
    assert len((out / "dropped.jsonl").read_text().splitlines()) == 2
    assert not list(out.glob("*.dropped"))
