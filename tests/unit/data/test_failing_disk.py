"""A disk that fails ends a conversion and drops no image: the same command completes it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_parquet_rows import write as write_parquet
from test_recordio import insightface
from test_recordio import write as write_rec
from test_user_inputs import archive

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.convert import convert
from manyfaces.data.sources import parquet_rows
from manyfaces.data.sources.parquet_rows import RowAt
from manyfaces.data.sources.recognise import recognise
from manyfaces.data.sources.source import FileAt
from manyfaces.data.synthetic.faces import encode


def fails(*_: object) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


REAL_PREAD = os.pread


def fails_for_images(descriptor: int, size: int, offset: int) -> bytes:
    """The starts of records can be read, and what is longer cannot."""
    return fails() if size > 100 else REAL_PREAD(descriptor, size, offset)


def failed(read: Callable[[], object], path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as error:
        read()
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(path))


def test_the_same_command_completes_a_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rec = write_rec(tmp_path, insightface([0, 0, 1], body=lambda key: encode(1, key, 0)))
    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", fails)
        failed(lambda: convert([rec], tmp_path / "out", processes=1), rec)
        broken.setattr(os, "pread", fails_for_images)
        with pytest.raises(
            UserError, match=r"rec:1: cannot be read \(Input/output.*; run the same"
        ):
            convert([rec], tmp_path / "out", processes=1)
    assert convert([rec], tmp_path / "out", processes=1).num_images == 3


def test_a_row_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["ann"])
    place = RowAt(str(path), 0, 0, "image")
    with monkeypatch.context() as broken:
        broken.setattr(parquet_rows._Cursor, "get", fails)
        failed(place.read, path)
    assert place.read() == b"image 0"
    path.rename(tmp_path / "away.parquet")
    parquet_rows._cursor.cache_clear()
    with pytest.raises(FileNotFoundError):
        place.read()


def test_columns_that_cannot_be_read_are_not_told_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken should be fetched again, or removed; what is whole should not."""
    table = write_parquet(tmp_path / "a.parquet", ["ann"])
    rec = write_rec(tmp_path, insightface([0, 0, 1]))
    with monkeypatch.context() as broken:
        broken.setattr(pq, "ParquetFile", fails)
        broken.setattr(pa.csv, "read_csv", fails)
        failed(lambda: recognise(table), table)
        failed(lambda: recognise(rec), rec.with_suffix(".idx"))


def test_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"one")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fails)
        failed(FileAt(str(path)).read, path)
    assert FileAt(str(path)).read() == b"one"


def test_a_member_of_a_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.zip", "ann/1.jpg")
    place = recognise(path).place(0)
    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", fails)
        failed(place.read, path)
    assert place.read() == b"ann/1.jpg"
