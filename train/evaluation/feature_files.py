"""Embeddings that others have computed, read from files some rows at a time: `.npy`, the parquet
files of `manyfaces embed`, and the `.bin` files of MegaFace's devkit.

Shapes: N rows, D the embedding.
"""

import os
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.train.evaluation.nearest import Floats

_ROWS = 1 << 14
_HEADER = struct.Struct("<4i")
_FLOAT32 = 5
"""OpenCV's number for a matrix of float32 in one channel."""
_OF_IMAGE = re.compile(r"(?P<image>.+\.(?:jpe?g|png|bmp))_[^/]*\.bin", re.IGNORECASE)
"""The devkit adds the name of the algorithm to the name of the image."""


class Features(ABC):
    """Embeddings in a file or folder."""

    where: str
    dim: int
    names: Sequence[str] | None = None
    """What each row is called; None where the file does not tell."""
    identities: Sequence[str] | None = None
    """Whom each row shows; None where the file does not tell."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def blocks(self) -> Iterator[Floats]:
        """All rows, float32, some at a time and as they are in the file. Raises `UserError` for a
        file that changed or is damaged."""


def open_features(path: Path) -> Features | None:
    """The embeddings that a path holds; None where it holds something else. Raises `UserError` for
    a file of this kind that is broken."""
    if path.is_dir():
        if bins := _below(path, ".bin"):
            return MegaFaceBins(path, bins)
        parts = [path / part for part in _below(path, ".parquet")]
        is_ours = bool(parts) and "embedding" in _columns(parts[0])
        return ParquetFeatures(path, parts) if is_ours else None
    if path.suffix == ".npy":
        return ArrayFile(path)
    if path.suffix == ".bin":
        return MegaFaceBins(path.parent, [path.name])
    if path.suffix == ".parquet" and "embedding" in _columns(path):
        return ParquetFeatures(path, [path])
    return None


class ArrayFile(Features):
    """A `.npy` of one row an image, with `NAME.txt` beside it where identities are known: a line
    for each row."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: is no whole .npy file of numbers ({error})") from error
        if self._array.ndim != 2 or self._array.dtype.kind != "f":
            raise UserError(
                f"{path}: has the shape {self._array.shape} and the type {self._array.dtype}; "
                "expected rows of floats, one for each image"
            )
        self.dim = self._array.shape[1]
        beside = path.with_suffix(".txt")
        if beside.is_file():
            self.identities = beside.read_text().splitlines()
            if len(self.identities) != len(self):
                raise UserError(
                    f"{beside}: {len(self.identities):,} lines for the {len(self):,} rows of "
                    f"{path.name}; expected the identity of each row"
                )

    def __len__(self) -> int:
        return len(self._array)

    def blocks(self) -> Iterator[Floats]:
        for start in range(0, len(self), _ROWS):
            yield np.asarray(self._array[start : start + _ROWS], np.float32)


class ParquetFeatures(Features):
    """Parquet files with the columns `key`, `identity` and `embedding`, as `manyfaces embed` writes
    them; rows without an embedding are left out."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.where, self._files = str(path), files
        names, identities, dims = list[str | None](), list[str | None](), set[int]()
        for file in files:
            there = [name for name in ("key", "identity") if name in _columns(file)]
            for batch in _batches(file, [*there, "embedding"]):
                known = batch.filter(batch.column("embedding").is_valid())
                nothing = [None] * known.num_rows
                for name, held in (("key", names), ("identity", identities)):
                    held.extend(known.column(name).to_pylist() if name in there else nothing)
                dims |= set(pc.list_value_length(known.column("embedding")).unique().to_pylist())
        if len(dims) != 1:
            raise UserError(f"{path}: has {len(dims)} widths of embeddings; expected one")
        (self.dim,) = dims
        self._count = len(names)
        self.names = [name or f"row {row}" for row, name in enumerate(names)]
        self.identities = [each or "" for each in identities] if any(identities) else None

    def __len__(self) -> int:
        return self._count

    def blocks(self) -> Iterator[Floats]:
        for file in self._files:
            for batch in _batches(file, ["embedding"]):
                known = batch.column("embedding").drop_null()
                rows = known.flatten().to_numpy(zero_copy_only=False)
                yield rows.astype(np.float32).reshape(len(known), self.dim)


class MegaFaceBins(Features):
    """Files as MegaFace's devkit takes them: each a matrix of OpenCV with the embedding of one
    image, `Person/image.png_ALGORITHM.bin`. The identity is the name of the folder."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.where, self._folder, self._files = str(folder), folder, files
        if len(files) == 1:
            self.where = str(folder / files[0])
        self.dim = len(_read_bin(folder / files[0]))
        self.names = [_image_of(file) for file in files]
        above = [name.rpartition("/")[0].rpartition("/")[2] for name in self.names]
        self.identities = [each or folder.name for each in above]

    def __len__(self) -> int:
        return len(self._files)

    def blocks(self) -> Iterator[Floats]:
        for start in range(0, len(self._files), _ROWS):
            files = self._files[start : start + _ROWS]
            rows = np.empty((len(files), self.dim), np.float32)
            for row, file in enumerate(files):
                read = _read_bin(self._folder / file)
                if len(read) != self.dim:
                    raise UserError(
                        f"{self._folder / file}: {len(read)} numbers, and "
                        f"{self._folder / self._files[0]} has {self.dim}"
                    )
                rows[row] = read
            yield rows


def write_bin(path: Path, embedding_D: NDArray[np.floating]) -> None:
    """Write the embedding of one image as MegaFace's devkit reads it."""
    body = np.asarray(embedding_D, "<f4").tobytes()
    path.write_bytes(_HEADER.pack(len(embedding_D), 1, 4, _FLOAT32) + body)


def _read_bin(path: Path) -> Floats:
    try:
        body = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    told = _HEADER.unpack(body[: _HEADER.size]) if len(body) >= _HEADER.size else (0, 0, 0, 0)
    rows, columns, _, kind = told
    if kind != _FLOAT32 or rows < 1 or columns != 1 or len(body) != _HEADER.size + 4 * rows:
        raise UserError(
            f"{path}: is no embedding as MegaFace's devkit has them (16 bytes: the numbers of the "
            "embedding, 1, 4, 5; then float32)"
        )
    return np.frombuffer(body, "<f4", offset=_HEADER.size)


def _image_of(file: str) -> str:
    told = _OF_IMAGE.fullmatch(file)
    return told["image"] if told else file.removesuffix(".bin")


def _below(folder: Path, suffix: str) -> list[str]:
    """The files of this suffix at any depth, relative to the folder and sorted. No further folder
    is looked into where the first ones with files have none of them."""
    found: list[str] = []
    looked_at = 0
    for above, folders, files in os.walk(folder):
        folders.sort()
        relative = os.path.relpath(above, folder)
        prefix = "" if relative == "." else f"{relative}/"
        found += [prefix + file for file in files if file.endswith(suffix)]
        looked_at += len(files)
        if not found and looked_at > 1000:
            return []
    return sorted(found)


def _columns(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no whole parquet file ({error})") from error


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from pq.ParquetFile(file).iter_batches(_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is no whole parquet file ({error})") from error
