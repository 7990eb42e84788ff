"""What a dataset folder must be, and that anything else is found before training."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.index_shards import index_folder, index_shard
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, parse_manifest
from manyfaces.data.dataset.verify import verify
from manyfaces.data.store.samples import Store


@pytest.fixture
def copy(dataset_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset_path, tmp_path / "copy"))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)
def test_the_index_gives_what_webdataset_reads(dataset) -> None:
    """The webdataset package is the oracle: same shards, same samples, same bytes, same labels."""
    urls = [str(dataset.part.shard_path(n)) for n in range(len(dataset.manifest.shards))]
    theirs = [(s["jpg"], int(s["cls"])) for s in webdataset.WebDataset(urls, shardshuffle=False)]
    blobs = Store(dataset.part).read(range(dataset.manifest.num_images))
    assert [
        (b.tobytes(), i) for b, i in zip(blobs, dataset.part.identity_N.tolist(), strict=True)
    ] == theirs


def test_a_name_tells_shard_and_key(dataset) -> None:
    assert dataset.name(0).startswith("shard-000000.tar:")
    assert dataset.name(0).endswith(".jpg")


def test_a_whole_dataset_passes(dataset) -> None:
    assert "every byte hashed" in verify(dataset.part, "auto")
    assert "not hashed" in verify(dataset.part, "sizes")


def test_a_missing_shard(copy: Path) -> None:
    (copy / "shard-000002.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000002\.tar: missing"):
        verify(open_part(copy), "sizes")


@pytest.mark.parametrize("cut", [512, 1024, 5000])
def test_a_shorter_shard_even_at_a_member_boundary(copy: Path, cut: int) -> None:
    path = copy / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"shard-000001\.tar: [\d,]+ bytes, expected"):
        verify(open_part(copy), "sizes")


def test_a_longer_shard(copy: Path) -> None:
    with (copy / "shard-000000.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match="bytes, expected"):
        verify(open_part(copy), "sizes")


def test_another_shard_of_the_same_size(copy: Path) -> None:
    path = copy / "shard-000000.tar"
    body = bytearray(path.read_bytes())
    body[2000] ^= 1
    path.write_bytes(body)
    verify(open_part(copy), "sizes")  # this cheap look cannot see it, and says so
    with pytest.raises(UserError, match="other bytes"):
        verify(open_part(copy), "auto")


def test_an_empty_or_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_part(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manyfaces\.json"):
        open_part(tmp_path)


def test_a_torn_manifest(copy: Path) -> None:
    (copy / MANIFEST).write_text((copy / MANIFEST).read_text()[:100])
    with pytest.raises(UserError, match=r"manyfaces\.json"):
        open_part(copy)


def test_a_label_out_of_range_names_its_sample(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["num_identities"] = 19
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shard-.*\.jpg: label 19 is not in \[0, 19\)"):
        verify(open_part(copy), "sizes")


def test_an_index_that_was_changed(copy: Path) -> None:
    """Two identities swapped: every offset still fits."""
    body = bytearray((copy / "index.arrow").read_bytes())
    column = open_part(copy).identity_N.tobytes()
    at = body.find(column)
    body[at : at + 8] = body[at + 4 : at + 8] + body[at : at + 4]
    (copy / "index.arrow").write_bytes(body)
    with pytest.raises(UserError, match=r"index\.arrow: other bytes"):
        verify(open_part(copy), "auto")


def test_the_fingerprint_follows_the_content(copy: Path, dataset) -> None:
    assert open_part(copy).manifest.fingerprint == dataset.manifest.fingerprint
    with tarfile.open(copy / "shard-000003.tar", "a") as tar:
        for name, body in (
            ("new.cls", b"3"),
            ("new.jpg", Store(dataset.part).read([0])[0].tobytes()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    manifest = index_folder(copy, processes=1)
    assert manifest.num_images == dataset.manifest.num_images + 1
    assert manifest.fingerprint != dataset.manifest.fingerprint


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.cls", b"cat", "label b'cat'"),
        ("a.cls", b"-1", "label b'-1'"),
        ("a.json", b'{"label": [1]}', "is not an integer"),
        ("a.json", b'{"label": true}', "is not an integer"),
        ("a.json", b'{"label": -0.5}', "is not an integer"),
        ("a.json", b'{"label": 2.7}', "is not an integer"),
        ("a.json", b'{"name": "ann"}', "is not an integer"),
        ("a.json", b"[1]", "is not an integer"),
        ("a.txt", b"", "no .cls"),
    ],
)
def test_foreign_shards_with_bad_labels(
    tmp_path: Path, name: str, body: bytes, message: str
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for member, content in (("a.jpg", b"\xff\xd8\xff\xff\xd9"), (name, body)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path, processes=1)


def foreign_tar(path: Path, numbers: range) -> Path:
    """A tar as others write it: samples of an odd number of bytes."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for name, body in (("jpg", bytes([1]) * (number * 70)), ("cls", b"%d" % number)):
                info = tarfile.TarInfo(f"{number}.{name}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return path


def test_a_cut_anywhere_is_found(tmp_path: Path) -> None:
    """Python's `tarfile` takes the end of the file for the end of the archive."""
    path = foreign_tar(tmp_path / "x.tar", range(12))
    whole = path.read_bytes()
    content = len(whole.rstrip(b"\0"))
    end = content + -content % 512
    found = index_shard(path)
    assert (found.shard.samples, found.shard.bytes) == (12, len(whole))
    for cut in [*range(0, end + 1, 512), *range(100, end, 1111)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"x\.tar"):
            index_shard(path)
    path.write_bytes(whole[: end + 512])  # some writers end with one block, and nothing is lost
    assert index_shard(path).shard.samples == 12


def test_a_header_that_is_none_does_not_end_the_archive(tmp_path: Path) -> None:
    path = foreign_tar(tmp_path / "x.tar", range(4))
    body = bytearray(path.read_bytes())
    at = body.index(b"2.jpg")
    body[at] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match=r"x\.tar: not a whole tar file: .* after sample '1'"):
        index_shard(path)


def test_joined_archives_are_not_taken_for_the_first_alone(tmp_path: Path) -> None:
    first, second = (
        foreign_tar(tmp_path / name, numbers).read_bytes()
        for name, numbers in (("a.tar", range(3)), ("b.tar", range(3, 6)))
    )
    (tmp_path / "a.tar").write_bytes(first + second)
    with pytest.raises(UserError, match=r"a\.tar: goes on behind the end of the archive"):
        index_shard(tmp_path / "a.tar")


def test_opening_costs_no_memory_a_sample(dataset) -> None:
    assert not dataset.part.identity_N.flags.owndata
    assert isinstance(dataset.part.identity_N, np.ndarray)


@pytest.mark.parametrize("name", ["../../x.tar", "/x.tar", "a/../x.tar"])
def test_a_shard_outside_the_dataset_is_one_line(name: str) -> None:
    shard = {"name": name, "bytes": 1, "samples": 1, "sha256": ""}
    manifest = Manifest(
        num_images=1, num_identities=1, image_px=None, index_sha256="", shards=()
    ).model_dump() | {"shards": [shard]}
    with pytest.raises(
        UserError, match=r"^there/manyfaces\.json: shards\.0\.name: .*is not the name"
    ):
        parse_manifest(json.dumps(manifest).encode(), "there")
