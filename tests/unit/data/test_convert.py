"""Sources in: what comes out, what is dropped, options, merging, restarts, reports, and
refusals."""

import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_recordio import insightface
from test_recordio import write as write_rec

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.align import TEMPLATE
from manyfaces.data.conversion.convert import convert
from manyfaces.data.conversion.edit import Edit
from manyfaces.data.conversion.items import reading_order
from manyfaces.data.conversion.report import duplicates, histogram_edges, lines
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.names import short_names
from manyfaces.data.dataset.verify import verify
from manyfaces.data.sources.listed import Listed
from manyfaces.data.sources.recognise import recognise
from manyfaces.data.store.samples import Store
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.data.synthetic.faces import encode


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for identity in range(6):
        (folder / f"person {identity}").mkdir(parents=True)
        for image in range(3):
            (folder / f"person {identity}" / f"{image}.v1.jpg").write_bytes(
                encode(5, identity, image)
            )
    return folder


def test_bytes_labels_and_names_survive(source: Path, tmp_path: Path) -> None:
    manifest = convert([source], tmp_path / "out", processes=2, shard_images=5)
    assert (manifest.num_images, manifest.num_identities, manifest.image_px) == (18, 6, (112, 112))
    dataset = open_part(tmp_path / "out")
    verify(dataset, "hashes")
    names = (tmp_path / "out" / "identities.txt").read_text().splitlines()
    assert sorted(names) == sorted(p.name for p in source.iterdir())
    found = {
        (names[i], b.tobytes())
        for i, b in zip(dataset.identity_N, Store(dataset).read(range(18)), strict=True)
    }
    assert found == {(p.parent.name, p.read_bytes()) for p in source.rglob("*.jpg")}


def test_class_ids_are_a_seeded_random_order(source: Path, tmp_path: Path) -> None:
    convert([source], tmp_path / "a", processes=1)
    convert([source], tmp_path / "b", processes=1)
    convert([source], tmp_path / "c", processes=1, seed=1)
    a, b, c = ((tmp_path / name / "identities.txt").read_text() for name in "abc")
    assert a == b != c
    assert (
        open_part(tmp_path / "a").manifest.fingerprint
        == open_part(tmp_path / "b").manifest.fingerprint
    )


def test_unusable_images_are_named_and_left_out(source: Path, tmp_path: Path) -> None:
    good = (source / "person 0" / "0.v1.jpg").read_bytes()
    (source / "person 1" / "0.v1.jpg").write_bytes(good[:-300])
    (source / "person 2" / "0.v1.jpg").write_bytes(b"")
    cv2.imwrite(str(source / "person 3" / "more.png"), np.full((90, 80, 3), 99, np.uint8))
    manifest = convert([source], tmp_path / "out", processes=2, shard_images=5)
    assert manifest.num_images == 17
    assert manifest.image_px is None
    dropped = [
        json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    ]
    assert {Path(row["source"]).parent.name for row in dropped} == {"person 1", "person 2"}


def test_a_killed_conversion_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands after a kill: the plan, some finished shards, one temporary file, no manifest."""
    out = tmp_path / "out"
    for person in range(4):
        (source / f"person {person}" / "1.v1.jpg").write_bytes(b"nothing")
    whole = convert([source], tmp_path / "whole", processes=1, shard_images=5)
    monkeypatch.setattr(
        "manyfaces.data.dataset.write.commit_shards",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        convert([source], out, processes=1, shard_images=5)
    monkeypatch.undo()
    (out / "shard-000002.tar").rename(out / ".shard-000002.tar.tmp-dead")
    kept = (out / "shard-000000.tar").stat().st_ino
    assert convert([source], out, processes=1, shard_images=5).fingerprint == whole.fingerprint
    assert (out / "shard-000000.tar").stat().st_ino == kept
    assert not list(out.glob(".*"))
    assert not list(out.glob("*.dropped"))
    assert (out / "dropped.jsonl").read_text() == (tmp_path / "whole" / "dropped.jsonl").read_text()
    assert report(out)["dropped"] == {"images": 4, "by_reason": {"not a decodable image": 4}}


def test_another_source_into_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    convert([source], tmp_path / "out", processes=1)
    with pytest.raises(UserError, match="already holds shards"):
        synthesise(tmp_path / "out", 3, 2, processes=1)


def test_refusals(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        convert([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "flat").mkdir()
    with pytest.raises(UserError, match="no identity folders"):
        convert([tmp_path / "flat"], tmp_path / "out")
    (source / "nobody").mkdir()
    with pytest.raises(UserError, match="no images in nobody"):
        convert([source], tmp_path / "out")


def held(path: Path) -> list[tuple[str, bytes]]:
    """Identity name and bytes of every image."""
    dataset, names = open_part(path), (path / "identities.txt").read_text().splitlines()
    blobs = Store(dataset).read(range(dataset.manifest.num_images))
    return sorted((names[i], b.tobytes()) for i, b in zip(dataset.identity_N, blobs, strict=True))


def report(path: Path) -> dict:
    found: dict = json.loads((path / "report.json").read_text())
    return found


def test_the_order_is_that_of_the_seed(source: Path, tmp_path: Path) -> None:
    """Keys and classes in file order: what a conversion has always written, whatever the source
    became inside."""
    convert([source], tmp_path / "out", processes=1, shard_images=5, seed=3)
    found = []
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                body = tar.extractfile(member)
                assert body is not None
                found.append((member.name, body.read()))
    class_of = rng.permutation(rng.key(3, 11), 6).argsort()
    expected = []
    for row in rng.permutation(rng.key(3, 12), 18).tolist():
        identity, number = divmod(row, 3)
        key = f"person_{identity}/{number}_v1-{row}"
        image = (source / f"person {identity}" / f"{number}.v1.jpg").read_bytes()
        expected += [(f"{key}.cls", str(class_of[identity]).encode()), (f"{key}.jpg", image)]
    assert found == expected


def test_every_kind_of_source_gives_the_same_images(source: Path, tmp_path: Path) -> None:
    convert([source], tmp_path / "folder", processes=1)
    files = sorted(source.rglob("*.jpg"))
    people = sorted({f.parent.name for f in files})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, str(file.relative_to(source)))
    (tmp_path / "list.txt").write_text(
        "".join(f"{f.relative_to(source)}\t{f.parent.name}\n" for f in files)
    )
    pq.write_table(
        pa.table(
            {"image": [f.read_bytes() for f in files], "name": [f.parent.name for f in files]}
        ),
        tmp_path / "a.parquet",
    )
    labels = [people.index(f.parent.name) for f in files]
    write_rec(tmp_path, insightface(labels, body=lambda key: files[key - 1].read_bytes()))
    for name in ("a.zip", "list.txt", "a.parquet", "train.rec"):
        out = tmp_path / "out" / name
        convert([tmp_path / name], out, processes=1, shard_images=7, options={"root": source})
        verify(open_part(out), "hashes")
        names = {str(n): person for n, person in enumerate(people)} if name == "train.rec" else {}
        assert sorted((names.get(i, i), b) for i, b in held(out)) == held(tmp_path / "folder")
        assert report(out)["sources"][0]["path"] == str(tmp_path / name)


def test_sources_are_merged_and_joined_where_said(source: Path, tmp_path: Path) -> None:
    twin = tmp_path / "b" / "source"
    for name in ("person 0", "person 9"):
        (twin / name).mkdir(parents=True)
        (twin / name / "x.jpg").write_bytes((source / "person 0" / "0.v1.jpg").read_bytes())
    manifest = convert([source, twin], tmp_path / "apart", processes=1)
    assert (manifest.num_images, manifest.num_identities) == (20, 8)
    names = {name for name, _ in held(tmp_path / "apart")}
    assert names == {f"{tmp_path.name}/source/person {n}" for n in range(6)} | {
        "b/source/person 0",
        "b/source/person 9",
    }
    assert report(tmp_path / "apart")["duplicates"] == {
        "images": 2,
        "within_an_identity": 0,
        "between_identities": 2,
    }

    mapping = tmp_path / "map.txt"
    mapping.write_text(f"b/source/person 0\tzero\n\n{tmp_path.name}/source/person 0\tzero\n")
    manifest = convert([source, twin], tmp_path / "joined", processes=1, identity_map=mapping)
    assert manifest.num_identities == 7
    assert sum(name == "zero" for name, _ in held(tmp_path / "joined")) == 4
    assert report(tmp_path / "joined")["duplicates"] == {
        "images": 2,
        "within_an_identity": 1,
        "between_identities": 1,
    }


def test_small_identities_are_left_out_and_told(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (source / "person 4" / "0.v1.jpg").unlink()
    (source / "person 5" / "1.v1.jpg").write_bytes(b"nothing")
    manifest = convert([source], out, processes=1, min_images=3)
    assert (manifest.num_images, manifest.num_identities) == (14, 5)
    rows = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    reason = "of an identity with fewer than 3 images"
    assert rows[0] == {"identity": "person 4", "images": 2, "reason": reason}
    assert report(out)["dropped"] == {
        "images": 3,
        "by_reason": {reason: 2, "not a decodable image": 1},
    }
    assert report(out)["histogram"] == {"from": [1, 2, 3], "identities": [0, 1, 4]}
    assert (out / "histogram.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        "3 images: 2 of an identity with fewer than 3 images; 1 not a decodable image"
        in lines(out)[1]
    )
    with pytest.raises(
        UserError, match="no identity has --min-images 9; the most images of one are 3"
    ):
        convert([source], tmp_path / "none", processes=1, min_images=9)


def test_an_identity_that_lost_all_its_images_keeps_its_class(source: Path, tmp_path: Path) -> None:
    for file in (source / "person 2").iterdir():
        file.write_bytes(b"nothing")
    manifest = convert([source], tmp_path / "out", processes=1, shard_images=4)
    assert (manifest.num_images, manifest.num_identities) == (15, 6)
    assert report(tmp_path / "out")["identities_without_images"] == {
        "count": 1,
        "first": ["person 2"],
    }
    assert "without images       1 identities" in "\n".join(lines(tmp_path / "out"))


def test_a_shard_without_one_usable_image_goes(source: Path, tmp_path: Path) -> None:
    for file in sorted(source.rglob("*.jpg"))[1:]:
        file.write_bytes(b"nothing")
    manifest = convert([source], tmp_path / "out", processes=1, shard_images=1)
    assert [s.name for s in manifest.shards] == [p.name for p in (tmp_path / "out").glob("*.tar")]
    assert len((tmp_path / "out" / "dropped.jsonl").read_text().splitlines()) == 17
    for file in source.rglob("*.jpg"):
        file.write_bytes(b"nothing")
    with pytest.raises(
        UserError, match="not one of 18 images could be used: 18 x not a decodable image"
    ):
        convert([source], tmp_path / "none", processes=1)


def test_images_are_resized_and_encoded_anew_where_asked(source: Path, tmp_path: Path) -> None:
    assert convert([source], tmp_path / "small", processes=1, edit=Edit(resize=64)).image_px == (
        64,
        64,
    )
    assert convert([source], tmp_path / "same", processes=1, edit=Edit(resize=112)).image_px == (
        112,
        112,
    )
    assert {b for _, b in held(tmp_path / "same")} == {
        f.read_bytes() for f in source.rglob("*.jpg")
    }
    convert([source], tmp_path / "poor", processes=1, edit=Edit(reencode=20))
    size = {name: open_part(tmp_path / name).size_N.sum() for name in ("same", "poor")}
    assert size["poor"] < 0.6 * size["same"]


def test_faces_are_aligned(tmp_path: Path) -> None:
    """Five dots drawn at the landmarks stand on the template after it; an image without landmarks
    is dropped."""
    landmarks, points = [], 2.5 * TEMPLATE @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + (200, 90)
    for person in range(2):
        (tmp_path / "faces" / str(person)).mkdir(parents=True)
        for image in range(2):
            canvas = np.full((600, 640, 3), 40 * person, np.uint8)
            for x, y in points:
                cv2.circle(canvas, (round(x), round(y)), 6, (255, 255, 255), -1)
            cv2.imwrite(str(tmp_path / "faces" / str(person) / f"{image}.png"), canvas)
            landmarks.append(
                f"{person}/{image}.png " + " ".join(f"{v:.2f}" for v in points.ravel())
            )
    (tmp_path / "landmarks.txt").write_text("\n".join(landmarks[:-1]))
    manifest = convert(
        [tmp_path / "faces"],
        tmp_path / "out",
        processes=1,
        edit=Edit(align=True),
        landmarks=tmp_path / "landmarks.txt",
    )
    assert (manifest.image_px, manifest.template, manifest.num_images) == (
        (112, 112),
        "arcface-112",
        3,
    )
    assert report(tmp_path / "out")["dropped"]["by_reason"] == {"no landmarks for it": 1}
    for _, blob in held(tmp_path / "out"):
        gray = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_GRAYSCALE)
        _, _, _, centres = cv2.connectedComponentsWithStats((gray > 150).astype(np.uint8))
        np.testing.assert_allclose(
            sorted(centres[1:].tolist()), sorted(TEMPLATE.tolist()), atol=0.7
        )


def test_images_read_in_groups_are_mixed_over_windows(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"] * 1000), "label": [n // 10 for n in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    grouped = recognise(tmp_path / "a.parquet")
    rows = np.delete(np.arange(1000), [3, 500])
    order = reading_order([grouped], rows, seed=1, window=100)
    assert sorted(order.tolist()) == rows.tolist()
    assert order.tolist() != reading_order([grouped], rows, seed=2, window=100).tolist()
    group_of, place = order // 20, np.arange(len(order))
    assert (
        max(np.ptp(place[group_of == group]) for group in range(50)) < 120
    )  # a window, and the rest of the group that it ends in
    assert np.mean([np.ptp(place[group_of == group]) for group in range(50)]) > 70


def test_an_image_costs_bytes_and_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "".join(f"people/{n // 20:08d}/{n:08d}.jpg\t{n // 20}\n" for n in range(40_000))
    )
    (tmp_path / "people" / "00000000").mkdir(parents=True)
    (tmp_path / "people" / "00000000" / "00000000.jpg").touch()
    tracemalloc.start()
    source = Listed(path, [path])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.label_N) == 40_000
    assert (
        kept < 40_000 * 80
    )  # of which 33 are the name, 8 its end, 4 the label, 10 the share of an identity's name


def test_duplicates_are_counted_once_each() -> None:
    digests = np.array([5, 5, 5, 7, 8, 8, 9], np.uint64)
    identities = np.array([0, 0, 1, 2, 3, 3, 0], np.uint32)
    assert duplicates(digests, identities) == {
        "images": 3,
        "within_an_identity": 2,
        "between_identities": 1,
    }


@pytest.mark.parametrize("highest", [1, 2, 40, 41, 500, 100_000])
def test_every_count_has_its_bin(highest: int) -> None:
    edges = histogram_edges(highest)
    assert edges[0] == 1
    assert edges[-1] == highest + 1
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= 42


def test_names_tell_sources_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.rec").touch()
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "train.rec", Path("/x/b/train")]) == ["a/train", "b/train"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("person 1\n", r"map.txt:1: expected `source identity name<TAB>merged name`"),
        ("person 1\tx\nperson 1\ty\n", r"map.txt:2: 'person 1' stands in a line above already"),
        (
            "nobody\tx\n",
            r"no identity 'nobody' in the sources \(1 such lines\); known is 'person 0'",
        ),
    ],
)
def test_identity_maps_that_are_none(source: Path, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(UserError, match=match):
        convert([source], tmp_path / "out", identity_map=tmp_path / "map.txt")


def test_options_that_contradict(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--align makes images of 112x112 and --resize others"):
        convert([source], tmp_path / "out", edit=Edit(resize=96, align=True))
    with pytest.raises(UserError, match="a source is given twice"):
        convert([source, source / ".." / "source"], tmp_path / "out")
    with pytest.raises(UserError, match="lies inside the source"):
        convert([source], source / "out")


def test_synthetic_datasets_are_the_same_bytes(dataset, tmp_path: Path) -> None:
    manifest = synthesise(tmp_path / "again", 20, 6, seed=7, processes=1, shard_images=32)
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in dataset.manifest.shards]
