"""`manyfaces embed`: each image of any source once, with the embedding that a program gets for
it."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_encoder import DIM, tiny_encoder

from manyfaces.data.dataset.dataset import Dataset, open_dataset
from manyfaces.data.dataset.forget import forget
from manyfaces.data.store.samples import Stores
from manyfaces.train import load_model
from manyfaces.train.cli.main import main


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def faces(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of three people in other formats and sizes than the network's, and what is no
    image."""
    folder = tmp_path_factory.mktemp("sources") / "faces"
    blobs = [bytes(blob) for blob in Stores(dataset).read(np.arange(8))]
    for number, ending in enumerate(["jpg", "png", "webp", "bmp", "jpg", "tiff", "jpg", "jpg"]):
        file = folder / f"person {number % 3}" / f"{number}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if ending == "jpg":
            file.write_bytes(blobs[number])
            continue
        pixels = cv2.imdecode(np.frombuffer(blobs[number], np.uint8), cv2.IMREAD_COLOR)
        assert cv2.imwrite(str(file), pixels[: 60 + number])
    (folder / "notes.txt").write_text("no image")
    return folder


def run(*words: object) -> int:
    return main(["embed", *map(str, words)])


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def keys(out: Path) -> list[str]:
    return [row["key"] for row in table(out)]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_each_row_is_what_a_program_gets_for_the_image(
    network: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e.parquet"
    assert run(network, faces, "--out", out, "--batch-size", 3) == 0
    rows = table(out)
    files = sorted(file for file in faces.rglob("*.*") if file.suffix != ".txt")
    assert [faces / row["key"] for row in rows] == files
    assert [row["identity"] for row in rows] == [file.parent.name for file in files]
    assert [row["row"] for row in rows] == list(range(len(files)))
    assert {row["source"] for row in rows} == {str(faces)}
    model = load_model(network)
    for row, file in zip(rows, files, strict=True):
        alone = model.embed([file], mirrored=False)[0]
        np.testing.assert_allclose(row["embedding"], alone, rtol=1e-5, atol=1e-6)
        with_array = model.embed([cv2.imread(str(file))[:, :, ::-1].copy()], mirrored=False)[0]
        assert with_array @ alone > 0.99  # resized by another program
    facts = json.loads(pq.read_schema(out).metadata[b"manyfaces"])
    assert facts["model"] == str(network)
    assert (
        facts["options"] | {"flip": False, "normalised": True, "dtype": "float32"}
        == (facts["options"])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet"]


def test_flipped_raw_and_halved(network: Path, faces: Path, tmp_path: Path) -> None:
    files = sorted(faces.rglob("*.jpg"))
    out = tmp_path / "e.parquet"
    assert run(network, *files, "--out", out, "--flip", "--raw", "--dtype", "float16") == 0
    found = pq.read_table(out)
    kind = found.schema.field("embedding").type
    assert (kind.value_type, kind.list_size) == (pa.float16(), DIM)
    assert found["source"].to_pylist() == [str(file.parent) for file in files]
    embeddings_ND = np.array([np.array(row) for row in found["embedding"].to_pylist()], np.float32)
    norm_N = np.linalg.norm(embeddings_ND, axis=1)
    np.testing.assert_allclose(found["norm"].to_numpy(), norm_N, rtol=2e-3)
    expected_ND = load_model(network).embed(files, mirrored=True)
    np.testing.assert_allclose(embeddings_ND / norm_N[:, None], expected_ND, atol=2e-3)


def test_a_broken_image_is_listed_and_stops_nothing(
    network: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(faces, folder)
    whole = (folder / "person 0" / "0.jpg").read_bytes()
    (folder / "person 0" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "person 0" / "2.webp").write_bytes(b"no image")
    (folder / "person 0" / "3.jpg").write_bytes(b"")
    out = tmp_path / "e.parquet"
    assert run(network, folder, "--out", out, "--part-images", 2) == 0
    assert "failed      3 images" in told(capsys)
    assert len(set(keys(out))) == 8
    failed = [json.loads(line) for line in Path(f"{out}.failed.jsonl").read_text().splitlines()]
    assert [row["key"] for row in failed] == [f"person 0/{n}" for n in ("1.jpg", "2.webp", "3.jpg")]
    assert {row["fault"] for row in failed} <= {
        "not a whole, decodable image",
        "not a decodable image",
    }
    assert run(network, folder, "--out", tmp_path / "s.parquet", "--strict") == 2
    assert "person 0/1.jpg: not a whole, decodable image; mend it" in told(capsys)
    assert run(network, folder / "person 0" / "1.jpg", "--out", tmp_path / "t.parquet") == 2
    assert "not one of 1 images could be embedded" in told(capsys)


def test_a_dataset_without_what_is_forgotten(
    network: Path, dataset_path: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "dataset"
    shutil.copytree(dataset_path, copied)
    part = open_dataset(copied).part
    lost = part.keys(np.arange(5))[4]
    forget(part, [str(int(part.identity_N[70]))], [lost])
    out = tmp_path / "e.parquet"
    assert run(network, copied, "--out", out, "--part-images", 16) == 0
    kept_N = np.flatnonzero(part.identity_N != part.identity_N[70])
    kept_N = kept_N[kept_N != 4]
    names = (copied / "identities.txt").read_text().splitlines()
    rows = table(out)
    assert [row["row"] for row in rows] == kept_N.tolist()
    assert [row["key"] for row in rows] == part.keys(kept_N)
    assert [row["identity"] for row in rows] == [names[n] for n in part.identity_N[kept_N]]


def test_lists_zips_tars_and_parquet_files(network: Path, faces: Path, tmp_path: Path) -> None:
    files = [str(file.relative_to(faces)) for file in sorted(faces.rglob("*.jpg"))]
    labelled, plain = tmp_path / "labelled.txt", tmp_path / "plain.txt"
    labelled.write_text("".join(f"{name}\tno {n}\n" for n, name in enumerate(files)))
    plain.write_text("".join(f"{faces / name}\n" for name in files))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(faces / files[0], "flat.jpg")
        archive.write(faces / files[1], "a/b/deep.jpg")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number, name in enumerate(files):
            tar.add(faces / name, f"{number}.jpg")
        (tmp_path / "2.cls").write_text("7")
        tar.add(tmp_path / "2.cls", "2.cls")
        tar.add(faces / "notes.txt", "notes.txt")
    blobs = [(faces / name).read_bytes() for name in files]
    pq.write_table(pa.table({"image": blobs}), tmp_path / "p.parquet")
    words = [labelled, plain, tmp_path / "z.zip", tmp_path / "t.tar", tmp_path / "p.parquet"]
    out = tmp_path / "all"
    # The label stands behind its image's neighbour: members of one key have to be neighbours.
    assert run(network, *words, "--out", out, "--root", faces, "--part-images", 5) == 0
    rows = [row for part in sorted(out.glob("part-*.parquet")) for row in table(part)]
    of = {str(word): [row for row in rows if row["source"] == str(word)] for word in words}
    assert [row["key"] for row in of[str(labelled)]] == files
    assert [row["identity"] for row in of[str(labelled)]] == [f"no {n}" for n in range(len(files))]
    assert [row["key"] for row in of[str(plain)]] == [str(faces / name) for name in files]
    assert {row["identity"] for row in of[str(plain)]} == {None}
    assert [(row["key"], row["identity"]) for row in of[str(words[2])]] == [
        ("flat.jpg", None),
        ("a/b/deep.jpg", "b"),
    ]
    assert [row["key"] for row in of[str(words[3])]] == [f"{n}.jpg" for n in range(len(files))]
    assert [row["key"] for row in of[str(words[4])]] == [f"p/0/{n}" for n in range(len(files))]
    by_bytes = {row["key"]: row["embedding"] for row in of[str(words[3])]}
    for number, row in enumerate(of[str(words[4])]):
        np.testing.assert_allclose(row["embedding"], by_bytes[f"{number}.jpg"], rtol=1e-5)


def test_images_at_urls(
    network: Path,
    faces: Path,
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where a dataset's shards are cached
    store = fsspec.filesystem("memory")
    store.put(str(faces), "/bucket/faces", recursive=True)
    store.put(str(dataset_path), "/bucket/dataset", recursive=True)
    files = sorted(str(file.relative_to(faces)) for file in faces.rglob("*.jpg"))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(faces / files[0], "one.jpg")
    store.put(str(tmp_path / "t.tar"), "/bucket/tars/t.tar")
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"memory://bucket/faces/{files[0]}\tsomeone\nmemory://bucket/gone.jpg\tno one\n"
    )
    words = [
        "memory://bucket/faces",
        "memory://bucket/dataset",
        "memory://bucket/tars/t.tar",
        f"memory://bucket/faces/{files[1]}",
        listed,
    ]
    out = tmp_path / "e.parquet"
    assert run(network, *words, "--out", out) == 0
    assert "failed      1 images" in told(capsys)
    (failed,) = map(json.loads, Path(f"{out}.failed.jsonl").read_text().splitlines())
    assert (failed["key"], failed["fault"][:14]) == ("memory://bucket/gone.jpg", "cannot be read")
    rows = table(out)
    of = {
        source: [row for row in rows if row["source"] == source]
        for source in {row["source"] for row in rows}
    }
    assert [row["identity"] for row in of["memory://bucket/faces"]] == ["person 0"] * 3 + (
        ["person 1"] * 3 + ["person 2"] * 2
    )
    assert len(of["memory://bucket/dataset"]) == 120
    assert [row["key"] for row in of["memory://bucket/tars/t.tar"]] == ["one.jpg"]
    folder = f"memory://bucket/faces/{files[1]}".rpartition("/")[0]
    assert [row["key"] for row in of[folder]] == [Path(files[1]).name]
    by_file = {row["key"]: row["embedding"] for row in of["memory://bucket/faces"]}
    for source, name in ((str(listed), files[0]), (folder, files[1])):
        np.testing.assert_allclose(of[source][0]["embedding"], by_file[name], rtol=1e-5)
    assert run(network, "memory://bucket/tars", "--out", tmp_path / "t.parquet") == 2
    assert "holds .tar shards without an index; run `manyfaces data index" in told(capsys)
    assert run(network, "memory://bucket/nothing", "--out", tmp_path / "n.parquet") == 2
    assert "memory://bucket/nothing: no images found there" in told(capsys)


def test_other_embeddings_do_not_get_into_the_same_file(
    network: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "e.parquet", tmp_path / "faces"
    shutil.copytree(faces, folder)
    assert run(network, folder, "--out", out) == 0
    before = out.read_bytes()
    assert run(network, folder, "--out", out) == 0
    assert "is complete already" in told(capsys)
    other = tiny_encoder(tmp_path, seed=1)
    for words, reason in (
        ([other, folder], "was begun of the model"),
        ([network, folder, "--flip"], "was begun with flip False, and now it is True"),
        ([network, folder, faces], f"was begun of other images, without {faces}"),
        ([network, faces], "was begun of other images"),
    ):
        assert run(*words, "--out", out) == 2
        assert reason in told(capsys)
    (folder / "person 0" / "new.jpg").write_bytes((folder / "person 0" / "0.jpg").read_bytes())
    assert run(network, folder, "--out", out) == 2
    assert f"was begun of {folder} with other images than it has now" in told(capsys)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("make", "words", "reason"),
    [
        (None, ["nowhere"], "nowhere: no such file or folder; expected image files"),
        ("empty/", ["empty"], "empty: no images found in it or below it"),
        ("text/a.txt", ["text"], "no images found in it or below it; it holds 1 no image by its"),
        ("a.bin", ["a.bin"], "a.bin: no images found in it"),
        ("twice.txt", ["twice.txt"], r"twice.txt:2: a.jpg stands in line 1 already"),
        ("t.tar", ["t.tar"], "t.tar: not a whole tar file"),
        ("t.tar.gz", ["t.tar.gz"], "t.tar.gz: compressed by gzip"),
        ("p.parquet", ["p.parquet"], "p.parquet: not a whole parquet file"),
    ],
)
def test_what_holds_no_images_is_told(
    network: Path,
    make: str | None,
    words: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"a.bin": b"\0\1\2", "twice.txt": b"a.jpg\na.jpg\n", "t.tar.gz": b"\x1f\x8b\x08"}
    if make is not None:
        file = tmp_path / make
        (file if make.endswith("/") else file.parent).mkdir(exist_ok=True)
        if not make.endswith("/"):
            file.write_bytes(contents.get(make, b"x" * 600))
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert run(network, *words, "--out", "e.parquet") == 2
    assert reason in told(capsys)


def test_places_that_hold_something_else_are_left_alone(
    network: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, reason in (
        (faces, "holds other files than embeddings"),
        (faces / "notes.txt", "is a file, and no OUT.parquet"),
        (tmp_path / "no" / "e.parquet", "no such folder"),
        ("s3://bucket/e.parquet", "embeddings are written to a disk"),
    ):
        assert run(network, faces, "--out", word) == 2
        assert reason in told(capsys)
    assert run(faces, faces, "--out", tmp_path / "e.parquet") == 2
    assert "no trained network there" in told(capsys)
    assert run(network, faces, faces / "person 0", "--out", tmp_path / "e.parquet") == 2
    assert "which is named too; name one of them" in told(capsys)
    file = faces / "person 0" / "0.jpg"
    assert run(network, file, file, "--out", tmp_path / "e.parquet") == 2
    assert "0.jpg: is named twice; name it once" in told(capsys)
