"""Files of embeddings, written as others write them."""

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manyfaces.configs.errors import UserError
from manyfaces.train.evaluation import feature_files
from manyfaces.train.evaluation.feature_files import Features, open_features, write_bin

ROWS = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def opened(path: Path) -> Features:
    found = open_features(path)
    assert found is not None
    return found


def read(path: Path) -> np.ndarray:
    return np.concatenate(list(opened(path).blocks()))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_with_and_without_identities(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files, "_ROWS", 3)
    np.save(tmp_path / "a.npy", ROWS.astype(dtype))
    found = opened(tmp_path / "a.npy")
    assert (len(found), found.dim, found.identities) == (7, 5, None)
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), ROWS.astype(dtype).astype("f4"))
    (tmp_path / "a.txt").write_text("x\ny\n" * 3 + "z\n")
    assert opened(tmp_path / "a.npy").identities == ["x", "y"] * 3 + ["z"]
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(UserError, match=r"a\.txt: 1 lines for the 7 rows of a\.npy"):
        open_features(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 5), pa.list_(pa.float16()), pa.list_(pa.float64())])  # fmt: skip
def test_parquet_as_embed_writes_it_and_as_others_do(tmp_path: Path, kind: pa.DataType) -> None:
    """Rows without an embedding are left out; Arrow cannot read those in lists of a fixed size."""
    values: list[object] = [list(map(np.float16, row)) for row in ROWS]
    if not pa.types.is_fixed_size_list(kind):
        values[2] = None
    table = pa.table(
        {
            "key": [f"{row}.jpg" for row in range(7)],
            "identity": ["x", "y", "x", "z", None, "y", "x"],
            "embedding": pa.array(values, pa.list_(pa.float16())).cast(kind),
        }
    )
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table[:4], folder / "part-0.parquet")
    pq.write_table(table[4:], folder / "part-1.parquet")
    found = opened(folder)
    rows = [row for row in range(7) if values[row] is not None]
    assert (len(found), found.dim) == (len(rows), 5)
    assert found.names == [f"{row}.jpg" for row in rows]
    assert found.identities == ["xyxz yx"[row].strip() for row in rows]
    expected = ROWS[rows].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(read(folder), expected)
    assert len(opened(folder / "part-1.parquet")) == 3
    pq.write_table(table.drop_columns(["embedding"]), tmp_path / "images.parquet")
    assert open_features(tmp_path / "images.parquet") is None


def test_files_of_the_megaface_devkit(tmp_path: Path) -> None:
    """As InsightFace's scripts write them: four integers, then float32."""
    names = ["A_B/A_B_1.png_net.bin", "A_B/A_B_2.png_net.bin", "C/C_1.jpg_my_net.bin", "C/2.bin"]
    for name, row in zip(names, ROWS, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(struct.pack("<4i5f", 5, 1, 4, 5, *row.tolist()))
    found = opened(tmp_path)
    assert found.names == ["A_B/A_B_1.png", "A_B/A_B_2.png", "C/2", "C/C_1.jpg"]
    assert found.identities == ["A_B", "A_B", "C", "C"]
    np.testing.assert_array_equal(read(tmp_path), ROWS[[0, 1, 3, 2]])
    write_bin(tmp_path / "again.bin", ROWS[0])
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / names[0]).read_bytes()
    assert len(opened(tmp_path / "again.bin")) == 1


@pytest.mark.parametrize("body", [b"", b"\x80\x04\x95" + bytes(40), struct.pack("<4i4f", 5, 1, 4, 5, *[0] * 4), struct.pack("<4i5f", 5, 1, 4, 6, *[0] * 5)])  # fmt: skip
def test_other_bins_are_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "lfw.bin").write_bytes(body)
    with pytest.raises(UserError, match=r"lfw\.bin: is no embedding as MegaFace's devkit has"):
        open_features(tmp_path / "lfw.bin")


def test_bins_of_two_networks_are_refused(tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", ROWS[0])
    write_bin(tmp_path / "b.bin", ROWS[0, :3])
    with pytest.raises(UserError, match=r"b\.bin: 3 numbers, and .*a\.bin has 5"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.zeros(3, np.float32), r"shape \(3,\)"), (np.zeros((3, 2), np.int64), "type int64")],
)
def test_arrays_that_are_no_embeddings_are_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=message):
        open_features(tmp_path / "a.npy")


def test_damaged_files_are_told(tmp_path: Path) -> None:
    for name in ("a.npy", "b.parquet"):
        (tmp_path / name).write_bytes(b"nothing of this kind")
        with pytest.raises(UserError, match=f"{name}: is no whole"):
            open_features(tmp_path / name)
