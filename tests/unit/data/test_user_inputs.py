"""Inputs as users have them: what systems leave beside images, names in other systems' writing,
several files of one source that do not agree, and indexes that are not whole. Whatever is not read
is listed, and what contradicts itself is refused in one line."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_recordio import MAGIC, image
from test_recordio import write as write_rec

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.convert import convert
from manyfaces.data.conversion.merge import merge_identities
from manyfaces.data.conversion.report import lines
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.recognise import recognise, recognise_each
from manyfaces.data.sources.source import Dropped, FileAt, Source
from manyfaces.data.synthetic.faces import encode


def tree(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    return path


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            file.writestr(info, name)
    return path


def parquet(path: Path, labels: list, classes: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [b"image %d" % n for n in range(len(labels))], "label": labels})
    if classes:
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path)
    return path


def held(source: Source) -> list[tuple[str, str]]:
    """Identity and name of each image."""
    return sorted(
        (source.identities[label], source.name(row))
        for row, label in enumerate(source.label_N.tolist())
    )


def refused(path: Path, match: str, **options: object) -> None:
    with pytest.raises(UserError, match=match):
        recognise(path, options)


LEFTOVERS = (
    "ann/._1.jpg",
    "ann/.DS_Store",
    "ann/Thumbs.db",
    "ann/desktop.ini",
    "ann/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "bob/.ipynb_checkpoints/1-checkpoint.jpg",
    ".Trash-1000/files/1.jpg",
    "__MACOSX/ann/._1.jpg",
    "lost+found/1.jpg",
    "$RECYCLE.BIN/1.jpg",
    "Thumbnails/1.jpg",
    "ann/2.HEIC",
    "ann/more.zip",
    "bob/notes.txt",
)


def test_what_systems_leave_is_no_person_and_is_listed(tmp_path: Path) -> None:
    images = ("ann/1.jpg", "ann/2.JPG", "ann/deep/3.jfif", "bob/1.tiff", "bob/2.gif")
    expected = sorted((name.split("/")[0], name) for name in images)
    source = recognise(tree(tmp_path / "folder", *images, *LEFTOVERS, "0.jpg"))
    assert held(source) == expected
    assert {name for name, _ in source.left_out} == {*LEFTOVERS, "0.jpg"}
    assert source.left_out.by_reason()["in a hidden, system or thumbnail folder"] == 7
    assert dict(source.left_out)["0.jpg"] == "in no identity folder"

    flat = [name for name in images if "deep" not in name]
    source = recognise(archive(tmp_path / "a.zip", *flat, *LEFTOVERS))
    assert held(source) == [pair for pair in expected if "deep" not in pair[1]]
    assert {name for name, _ in source.left_out} == {f"a.zip:{name}" for name in LEFTOVERS}


def test_what_is_left_out_is_reported(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "src" / f"p{number}").mkdir(parents=True)
        (tmp_path / "src" / f"p{number}" / "1.jpg").write_bytes(encode(1, number, 0))
    tree(tmp_path / "src", *LEFTOVERS[4:9])
    for name in ("ann", "bob"):
        (tmp_path / "src" / name / "1.jpg").write_bytes(encode(2, len(name), 0))
    out = tmp_path / "out"
    assert convert([tmp_path / "src"], out, processes=1).num_images == 4
    reason = "in a hidden, system or thumbnail folder"
    (source,) = json.loads((out / "report.json").read_text())["sources"]
    assert source["left_out"] == {reason: 5}
    rows = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == sorted(LEFTOVERS[4:9])
    assert any(f"5 files: 5 {reason}" in line for line in lines(out))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    tree(tmp_path, "src/ann/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "src" / "ann" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "src" / "ann" / "up").symlink_to(tmp_path / "src")
    (tmp_path / "src" / "ann" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "src" / "ann" / "pipe.jpg")
    source = recognise(tmp_path / "src")
    assert held(source) == [("ann", "ann/1.jpg"), ("ann", "ann/more/2.jpg")]
    assert sorted(name for name, _ in source.left_out) == [
        "ann/gone.jpg",
        "ann/pipe.jpg",
        "ann/up/",
    ]


def test_folders_whose_people_are_deeper(tmp_path: Path) -> None:
    splits = tree(tmp_path / "s", "train/ann/1.jpg", "val/bob/1.jpg")
    refused(splits, r"its folders are splits \(train, val\) .* name one of them: .*/s/train")
    refused(tree(tmp_path / "w", "faces/ann/1.jpg", "faces/bob/1.jpg"), "its only folder is faces")
    views = tree(tmp_path / "v", "1/front/1.jpg", "1/side/1.jpg", "2/front/1.jpg", "2/side/1.jpg")
    assert recognise(views).notes == []
    deep = tree(tmp_path / "d", "0/0_1/1.jpg", "0/0_2/1.jpg", "1/1_1/1.jpg", "1/1_2/1.jpg")
    assert "are its 2 folders, which hold 4 folders (0/0_1 ..)" in recognise(deep).notes[0]


def test_zip_names_of_all_systems(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", "f\\ann\\", "f\\ann\\1.jpg", "f/bob/1.jpg", "./f//bob/2.jpg")
    assert held(recognise(path)) == [
        ("ann", "f/ann/1.jpg"),
        ("bob", "f/bob/1.jpg"),
        ("bob", "f/bob/2.jpg"),
    ]
    for written, meant in (("gr\xfcn".encode(), "grün"), (b"gr\x81n", "grün"), (b"ann", "ann")):
        body = archive(tmp_path / "b.zip", "N" * len(written) + "/1.jpg").read_bytes()
        (tmp_path / "b.zip").write_bytes(body.replace(b"N" * len(written) + b"/", written + b"/"))
        assert recognise(tmp_path / "b.zip").identities == [meant]


def test_zips_that_contradict_themselves(tmp_path: Path) -> None:
    def zipped(*names: str) -> Path:
        return archive(tmp_path / "a.zip", *names)

    refused(
        zipped("cfp/1/front/1.jpg", "cfp/2/front/1.jpg"),
        "a folder front in cfp/1 and in cfp/2; .* convert the folder whose folders are the people",
    )
    refused(zipped("ann/1.jpg", "bob/2020/1.jpg"), "in ann and in bob/2020, at other levels")
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped("ann/1.jpg", "ann/2.jpg", "ann/1.jpg")
    refused(tmp_path / "a.zip", "ann/1.jpg stands twice in it")
    refused(
        zipped("ann/1.heic"), r"no images in it; .* it holds 1 an image format that is not read"
    )
    splits = zipped("train/ann/1.jpg", "train/bob/1.jpg", "test/ann/2.jpg")
    refused(splits, "holds the splits test, train; name one with --split train")
    refused(splits, "no split 'validation'; the splits are: test, train", split="val")
    source = recognise(splits, {"split": "train"})
    assert len(held(source)) == 2
    assert list(source.left_out) == [("a.zip:test/ann/2.jpg", "of the split test")]


def test_broken_fields_of_a_zip_are_no_traceback(tmp_path: Path) -> None:
    body = archive(tmp_path / "a.zip", "ann/1.jpg").read_bytes()
    at = body.index(b"PK\x01\x02")
    far = body[: at + 42] + b"\xf0\xff\xff\xff" + body[at + 46 :]
    (tmp_path / "a.zip").write_bytes(far)
    refused(tmp_path / "a.zip", "not a whole zip archive")


def listed(tmp_path: Path, body: bytes | str) -> Path:
    tree(tmp_path, "my faces/a/1.jpg", "my faces/b/1.jpg")
    path = tmp_path / "list.txt"
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path


TEXT = "my faces/a/1.jpg\t007\r\nmy faces/b/1.jpg\tbob\r\n"


@pytest.mark.parametrize(
    "body",
    [
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-32"),
        TEXT.replace("/", "\\").encode(),
        ("path\tlabel\n" + TEXT).encode(),
        ("image path\tperson id\n" + TEXT).encode(),
        TEXT.replace("\t", "  ").replace("\r\n", " \t \n").encode(),
        b'"my faces/a/1.jpg"\t"007"\n"my faces/b/1.jpg" bob\n',
    ],
)
def test_lists_of_all_systems(tmp_path: Path, body: bytes) -> None:
    source = recognise(listed(tmp_path, body))
    assert held(source) == [("007", "my faces/a/1.jpg"), ("bob", "my faces/b/1.jpg")]
    for row in range(2):
        assert source.place(row).read()
    assert len(source.left_out) == (body[:5] in (b"path\t", b"image"))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (
            TEXT + "my faces/a/1.jpg\tbob\n",
            r"list.txt:3: my faces/a/1.jpg stands in line 1 already",
        ),
        ("007 my faces/a/1.jpg\n", "list.txt:1: expected `path<TAB>label`"),
        (TEXT.replace("bob", "7.0"), "the labels '007' and '7.0' are one number"),
        ("0\t7\tmy faces/a/1.jpg\n", "leave two columns, the path first"),
        ("my faces/a/1.jpg\n", "list.txt:1: expected `path<TAB>label`"),
        ("my faces/a/1.jpg,007\n", "put a tab in place of the comma"),
        ("C:\\my faces\\a\\1.jpg\t7\n", "their place on a Windows machine"),
        (TEXT.encode("utf-16")[:-1], "begins as utf-16 and is not"),
        (b"a" * 5000 + b"\0 7\n", "list.txt:1: holds a zero byte"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, body: bytes | str, match: str) -> None:
    refused(listed(tmp_path, body), match)


def test_parquet_splits(tmp_path: Path) -> None:
    for layout in ("data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}.parquet"):
        folder = tmp_path / layout.partition("/")[0].strip("{}.")
        for number, split in enumerate(("train", "validation", "test")):
            parquet(folder / layout.format(split), [number, 9])
        refused(folder, "holds the splits test, train, validation; name one with --split train")
        source = recognise(folder, {"split": "train"})
        assert (source.kind, sorted(source.identities)) == ("parquet", ["0", "9"])
        assert len(source.left_out) == 2
        both = recognise(folder, {"split": "train+val"})
        assert sorted(both.identities) == ["0", "1", "9"]
        file = folder / layout.format("validation")
        for wanted in (None, "val", "train+validation"):
            assert sorted(recognise(file, {"split": wanted}).identities) == ["1", "9"]
        refused(file, "is of the split validation, and --split says test; leave", split="test")
    refused(parquet(tmp_path / "0.parquet", [1]), "is of no split by its name, and", split="test")


def test_parquet_files_that_do_not_agree(tmp_path: Path) -> None:
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    first = parquet(tmp_path / "a" / names[0], [0, 1], ["ann", "bob"])
    refused(
        first.parent, "train, whose names say that there are 2; .* name those that you want one"
    )
    assert recognise(first).identities == ["ann", "bob"]
    parquet(tmp_path / "a" / names[1], [0, 1], ["bob", "ann"])
    refused(first.parent, f"{names[1]}: column 'label' has other class names than in {names[0]}")
    parquet(tmp_path / "a" / names[1], [0, 1])
    refused(first.parent, "has other class names")
    parquet(tmp_path / "a" / names[1], ["0", "1"])
    refused(first.parent, "holds numbers in .* and texts in")
    refused(
        parquet(tmp_path / "b.parquet", [0, 1], ["ann", "ann"]), "two classes of the name 'ann'"
    )
    refused(parquet(tmp_path / "b.parquet", ["ann", " "]), "holds an empty text")
    parquet(tmp_path / "c" / "small" / "train" / "0.parquet", [0])
    parquet(tmp_path / "c" / "large" / "train" / "0.parquet", [0])
    refused(tmp_path / "c", r"holds several sources \(large/, small/\)")


def chunk(path: Path, keys: list[int], idx: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rec(path.parent, [(key, image(key % 3, b"image %d" % key)) for key in keys], idx)
    for suffix in (".rec", ".idx") if idx else (".rec",):
        (path.parent / f"train{suffix}").rename(path.with_suffix(suffix))
    return path


@pytest.mark.parametrize("idx", [True, False])
def test_chunks_of_im2rec_are_one_source(tmp_path: Path, idx: bool) -> None:
    paths = [chunk(tmp_path / f"train_{n}.rec", list(range(n, 12, 2)), idx) for n in range(2)]
    for source in (recognise(tmp_path), *recognise_each(paths)):
        assert source.identities == ["0", "1", "2"]
        assert sorted(source.place(row).read() for row in range(12)) == sorted(
            b"image %d" % key for key in range(12)
        )
        assert len({source.name(row) for row in range(12)}) == 12
        assert any("one source" in note for note in source.notes)
        assert not len(source.left_out)
    assert [one.path for one in recognise_each([paths[0], tmp_path / "train_1.rec"])] == [paths[0]]
    paths[0].rename(tmp_path / "train_2.rec")
    refused(tmp_path, "and number 0 is not there")


def test_files_that_are_no_chunks(tmp_path: Path) -> None:
    chunk(tmp_path / "train_0.rec", [0, 1, 2])
    chunk(tmp_path / "train_1.rec", [2, 3])
    refused(tmp_path, "key 2 is in two of train_0.rec to train_1.rec")
    for name in ("a_0.txt", "a_1.txt"):
        listed(tmp_path, TEXT).rename(tmp_path / name)
    assert len(recognise_each([tmp_path / "a_0.txt", tmp_path / "a_1.txt"])) == 2


def test_parquet_files_of_one_table_that_are_named_one_by_one(tmp_path: Path) -> None:
    files = [parquet(tmp_path / f"train-0000{n}-of-00002.parquet", ["ann"]) for n in range(2)]
    (source,) = recognise_each(files)
    assert source.identities == ["ann"]
    (note,) = source.notes
    assert note.endswith("by their names; to keep them apart, put each into another folder")


def test_files_of_one_folder_whose_numbers_say_nothing_stay_apart(tmp_path: Path) -> None:
    """A folder 0 of one archive is not the person of a folder 0 of another."""
    zips = [archive(tmp_path / f"batch_{n}.zip", "0/1.jpg", "1/1.jpg") for n in range(2)]
    tables = [parquet(tmp_path / f"batch_{n}.parquet", [0, 1]) for n in range(2)]
    for paths in (zips, tables):
        sources = recognise_each(paths)
        assert [source.path for source in sources] == paths
        assert [sorted(source.identities) for source in sources] == [["0", "1"]] * 2
        assert len(merge_identities(sources, None)[0]) == 4
    folder = tmp_path / "zips"
    folder.mkdir()
    for path in zips:
        path.rename(folder / path.name)
    assert sorted(recognise(folder).identities) == ["0", "1"]


@pytest.mark.parametrize("change", ["cut", "middle", "twice", "more"])
def test_an_idx_has_to_list_every_record_once(tmp_path: Path, change: str) -> None:
    path = write_rec(tmp_path, [(key, image(key, bytes(40))) for key in range(6)])
    told = path.with_suffix(".idx").read_text().splitlines(keepends=True)
    changed = {
        "cut": told[:4],
        "middle": told[:2] + told[3:],
        "twice": [*told, told[1].replace("1\t", "9\t", 1)],
        "more": [*told, "6\t100000\n"],
    }
    path.with_suffix(".idx").write_text("".join(changed[change]))
    match = {
        "cut": r"goes on behind the last record of its .idx, .* \(4 records are listed\); .* on purpose",
        "middle": "its .idx passes over what stands from byte .* on purpose, convert all, and take",
        "twice": "has the record at byte 72 twice",
        "more": "no whole record at byte 100,000",
    }
    refused(path, match[change])


def test_sizes_are_compared_before_anything_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(Dropped, match="more than 67,108,864 bytes"):
        FileAt(str(tmp_path / "large.jpg")).read()
    with (tmp_path / "a.rec").open("wb") as file:
        file.write(MAGIC + struct.pack("<IIfQQ", MOST_BYTES + 24, 0, 1.0, 0, 0))
        file.truncate(MOST_BYTES + 32)
    with pytest.raises(Dropped, match="more than 67,108,864 bytes"):
        recognise(tmp_path / "a.rec").place(0).read()
    table = pa.table({"image": [b"small", bytes(MOST_BYTES + 1)], "label": [0, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = recognise(tmp_path / "a.parquet")
    assert source.place(0).read() == b"small"
    with pytest.raises(Dropped, match="more than 67,108,864 bytes"):
        source.place(1).read()
