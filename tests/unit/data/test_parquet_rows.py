"""Parquet files as Hugging Face exports them, and with plain columns."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.parquet_rows import RowAt, Rows, read_rows
from manyfaces.data.sources.source import Dropped

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(
    path: Path,
    labels: list,
    classes: list[str] | None = None,
    kind: pa.DataType | None = None,
    rows_a_group: int = 2,
) -> Path:
    images = [
        {"bytes": b"image %d" % n, "path": f"{n}.jpg" if n else None} for n in range(len(labels))
    ]
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, kind)})
    if classes:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def images(found: Rows) -> list[tuple[str, bytes]]:
    """Identity and bytes of each row."""
    blobs = []
    for row, group in enumerate(found.group_N.tolist()):
        path, number = found.place_G[group]
        blobs.append(
            RowAt(str(path), number, row - int(found.first_G[group]), found.image_column).read()
        )
    return [
        (found.identities[label], blob)
        for label, blob in zip(found.label_N.tolist(), blobs, strict=True)
    ]


def test_class_labels_are_named(tmp_path: Path) -> None:
    found = read_rows([write(tmp_path / "a.parquet", [2, 0, 2, 2, 0], ["ann", "bob", "cy"])])
    assert images(found) == [
        (name, b"image %d" % n) for n, name in enumerate(["cy", "ann", "cy", "cy", "ann"])
    ]
    assert [found.names[row] for row in range(5)] == ["", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert found.group_N.tolist() == [0, 0, 1, 1, 2]


def test_several_files_and_kinds_of_label(tmp_path: Path) -> None:
    one = write(tmp_path / "a.parquet", ["x", "y", "x"])
    two = write(tmp_path / "b.parquet", ["y", "z"], kind=pa.dictionary(pa.int32(), pa.string()))
    assert [name for name, _ in images(read_rows([one, two]))] == ["x", "y", "x", "y", "z"]
    assert [
        name
        for name, _ in images(
            read_rows([write(tmp_path / "c.parquet", [7, -0, 7], kind=pa.int16())])
        )
    ] == ["7", "0", "7"]


def test_a_plain_binary_column(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"jpg": pa.array([b"one", b"two"]), "person_id": [5, 6], "age": [30, 40]}),
        tmp_path / "a.parquet",
    )
    assert images(read_rows([tmp_path / "a.parquet"])) == [("5", b"one"), ("6", b"two")]


def test_rows_out_of_order(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.parquet", [0] * 300, rows_a_group=200))
    for row in (199, 3, 70, 70, 150, 0):
        assert RowAt(path, 0, row, "image").read() == b"image %d" % row
        assert RowAt(path, 1, row // 2, "image").read() == b"image %d" % (200 + row // 2)


def test_a_row_without_an_image(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": None, "path": "x"}, None], IMAGE), "label": [0, 1]}),
        tmp_path / "a.parquet",
    )
    for row in range(2):
        with pytest.raises(Dropped, match="no image bytes in the row"):
            RowAt(str(tmp_path / "a.parquet"), 0, row, "image").read()


def test_columns_that_cannot_be_told(tmp_path: Path) -> None:
    path, binary = tmp_path / "a.parquet", pa.array([b"x"])
    pq.write_table(
        pa.table({"left": binary, "right": binary, "label": [0], "identity": [7], "note": ["n"]}),
        path,
    )
    with pytest.raises(
        UserError,
        match=r"2 columns could be the image \(left, right\); name it with --image-column",
    ):
        read_rows([path])
    with pytest.raises(
        UserError,
        match=r"2 columns could be the label \(label, identity\); name it with --label-column",
    ):
        read_rows([path], "left")
    assert images(read_rows([path], "right", "identity")) == [("7", b"x")]
    with pytest.raises(UserError, match=r"no column 'face' of image bytes; it has left \(binary\)"):
        read_rows([path], "face", "identity")
    with pytest.raises(UserError, match="no column 'right' of integers or texts"):
        read_rows([path], "left", "right")
    pq.write_table(pa.table({"label": [0]}), path)
    with pytest.raises(UserError, match="no column looks like the image"):
        read_rows([path])


def test_rows_without_a_label(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.parquet: row group 1, row 0: column 'label' is empty"):
        read_rows([write(tmp_path / "a.parquet", [0, 1, None, 2])])
    with pytest.raises(UserError, match=r"column 'label' holds -1, which is no class"):
        read_rows([write(tmp_path / "a.parquet", [0, -1])])
    with pytest.raises(UserError, match=r"column 'label' holds 2, which is no class"):
        read_rows([write(tmp_path / "a.parquet", [0, 2], ["a", "b"])])


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"a.parquet: not a whole parquet file"):
        read_rows([tmp_path / "a.parquet"])
    with pytest.raises(UserError, match="no rows in 1 parquet files"):
        read_rows([write(tmp_path / "b.parquet", [], kind=pa.int64())])
