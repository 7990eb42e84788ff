"""What a path is taken for, whose images it holds, and the one line for what cannot be used."""

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_recordio import image, insightface
from test_recordio import write as write_rec

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.listed import Listed
from manyfaces.data.sources.recognise import recognise
from manyfaces.data.sources.source import Dropped, Source

PEOPLE = {"ann/1.jpg": b"ann one", "ann/2.jpg": b"ann two", "bob 3/1.jpg": b"bob one"}
IN_THE_SOURCE = {("ann", b"ann one"), ("ann", b"ann two"), ("bob 3", b"bob one")}


def folder(path: Path) -> Path:
    for name, body in PEOPLE.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(body)
    return path


def archive(path: Path, prefix: str = "", people: dict[str, bytes] = PEOPLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, body in people.items():
            file.writestr(prefix + name, body)
        file.writestr("README.txt", "not an image")
        file.writestr("__MACOSX/ann/._1.jpg", "nor this")
    return path


def table(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {"image": list(PEOPLE.values()), "label": [name.split("/")[0] for name in PEOPLE]}
        ),
        path,
    )
    return path


def listing(path: Path, separator: str = "\t") -> Path:
    folder(path.parent)
    path.write_text("".join(f"{name}{separator}{name.split('/')[0]}\n" for name in PEOPLE))
    return path


def held(source: Source) -> set[tuple[str, bytes]]:
    return {
        (source.identities[label], source.place(row).read())
        for row, label in enumerate(source.label_N.tolist())
    }


def test_each_kind_is_recognised(tmp_path: Path) -> None:
    a = tmp_path
    sources = {
        "folder": [folder(a / "people")],
        "list": [listing(a / "l" / "train.txt"), listing(a / "m" / "no-suffix")],
        "zip": [
            archive(a / "a.zip"),
            archive(a / "b.zip", "WebFace/0/"),
            archive(a / "z" / "0.zip").parent,
        ],
        "parquet": [
            table(a / "a.parquet"),
            table(a / "p" / "0.parquet").parent,
            table(a / "hf" / "data" / "train-0.parquet").parent.parent,
        ],
    }
    for kind, paths in sources.items():
        for path in paths:
            source = recognise(path)
            assert (source.kind, held(source)) == (kind, IN_THE_SOURCE), path


def test_records_by_file_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    rec = write_rec(tmp_path / "faces", insightface([0, 0, 3]))
    (tmp_path / "faces" / "property").write_text("2,112,112")
    for path in (rec, rec.parent):
        source = recognise(path)
        assert (source.kind, source.identities) == ("rec", ["0", "3"])
        assert held(source) == {("0", b"image 1"), ("0", b"image 2"), ("3", b"image 3")}
        assert source.name(2) == "3"
        assert str(source.place(2)) == f"{rec}:3"


def test_an_identity_may_be_in_several_zips(tmp_path: Path) -> None:
    archive(tmp_path / "z" / "0.zip", "0/")
    archive(tmp_path / "z" / "1.zip", "1/", {"ann/9.jpg": b"ann nine"})
    source = recognise(tmp_path / "z")
    assert held(source) == IN_THE_SOURCE | {("ann", b"ann nine")}
    assert (source.name(3), str(source.place(3))) == (
        "1/ann/9.jpg",
        f"{tmp_path}/z/1.zip:1/ann/9.jpg",
    )


def test_lists(tmp_path: Path) -> None:
    folder(tmp_path / "root")
    path = tmp_path / "list.txt"
    path.write_text(
        f"\ufeffann/1.jpg 17\n\nbob 3/1.jpg\tname of bob\r\n{tmp_path}/root/ann/2.jpg 17\n"
    )
    source = Listed(path, [path], root=tmp_path / "root")
    assert held(source) == {("17", b"ann one"), ("17", b"ann two"), ("name of bob", b"bob one")}
    path.write_text("ann/1.jpg 17\nann/2.jpg 17\n")
    with pytest.raises(
        UserError,
        match=r"not one of its 2 images is there \(the first: .*/ann/1.jpg\); set --root FOLDER",
    ):
        recognise(path)


def test_an_image_that_is_not_there_is_dropped(tmp_path: Path) -> None:
    path = listing(tmp_path / "list.txt")
    path.write_text(path.read_text() + "ann/3.jpg\tann\n")
    source = recognise(path)
    with pytest.raises(Dropped, match="cannot be read: No such file or directory"):
        source.place(3).read()


@pytest.mark.parametrize(
    "line", ["ann/2.jpg", "ann/2.jpg\t", "\tann", "0\t1.000\tann/2.jpg", " ann"]
)
def test_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    path = listing(tmp_path / "list.txt")
    path.write_text(f"ann/1.jpg\tann\n{line}\n")
    with pytest.raises(UserError, match=r"list.txt:2: expected `path<TAB>label` or `path label`"):
        recognise(path)


def test_a_source_that_changes_has_another_digest(tmp_path: Path) -> None:
    makers = [
        lambda: recognise(folder(tmp_path / "people")),
        lambda: recognise(listing(tmp_path / "l" / "list.txt")),
        lambda: recognise(archive(tmp_path / "a.zip", people=PEOPLE)),
        lambda: recognise(table(tmp_path / "a.parquet")),
        lambda: recognise(
            write_rec(tmp_path, [(n, image(n, body)) for n, body in enumerate(PEOPLE.values())])
        ),
    ]
    before = [make().digest for make in makers]
    assert before == [make().digest for make in makers]
    PEOPLE["ann/3.jpg"] = b"ann three"
    try:
        assert not set(before) & {make().digest for make in makers}
    finally:
        del PEOPLE["ann/3.jpg"]


def test_refusals(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match):
            recognise(path)

    refused(
        tmp_path / "nowhere",
        r"nowhere: no such file or folder; recognised: a folder of identity folders, a text list",
    )
    (tmp_path / "flat").mkdir()
    refused(tmp_path / "flat", r"flat: no identity folders in it; .* recognised:")
    (folder(tmp_path / "people") / "nobody").mkdir()
    refused(tmp_path / "people", "no images in nobody; remove the empty folders or fill them")
    (tmp_path / "a.tfrecord").write_bytes(b"\x10\0\0\0\0\0\0\0")
    refused(tmp_path / "a.tfrecord", r"a.tfrecord: not a source; recognised:")
    (tmp_path / "empty.txt").write_text("")
    refused(tmp_path / "empty.txt", r"empty.txt: no lines in it")
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    refused(tmp_path / "a.zip", r"a.zip: not a whole zip archive")
    refused(
        archive(tmp_path / "b.zip", people={"1.jpg": b"x"}),
        r"b.zip: 1.jpg lies in no folder; expected <identity>/1.jpg",
    )
    refused(archive(tmp_path / "c.zip", people={}), r"c.zip: no images in it")
    (tmp_path / "a.rec").write_bytes(b"no record, but bytes enough")
    refused(tmp_path / "a.rec", r"a.rec: no record at byte 0 of 27")
    (tmp_path / "a.parquet").write_bytes(b"no")
    refused(tmp_path / "a.parquet", r"a.parquet: not a whole parquet file")
    refused(tmp_path, r"holds several sources \(a.rec, a.zip, b.zip, c.zip, a.parquet\)")
    archive(folder(tmp_path / "both") / "more.zip")
    refused(tmp_path / "both", r"holds several sources \(more.zip, identity folders\)")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(b"")
    refused(
        tmp_path / "shards",
        r"holds .tar shards, which need no conversion; run `manyfaces data index",
    )
    (folder(tmp_path / "mixed") / "0.tar").write_bytes(b"")
    refused(
        tmp_path / "mixed",
        r"mixed: holds .tar shards beside identity folders, .* move them elsewhere to convert",
    )
