"""A dataset: plain WebDataset shards, `index.arrow` (one row a sample, memory-mapped) and `manyfaces.json` (what the shards must be)."""

import functools
import hashlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import track

from manyfaces.configs.schema import UserError
from manyfaces.data.sample import member_at

MANIFEST, INDEX = "manyfaces.json", "index.arrow"
COLUMNS = {"shard": pa.uint32(), "offset": pa.uint64(), "size": pa.uint32(), "identity": pa.uint32()}
HASH_UP_TO_BYTES = 4 << 30


class Shard(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str
    bytes: int
    samples: int
    sha256: str


class Manifest(BaseModel):
    """`manyfaces.json`."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    num_images: int
    num_identities: int
    image_px: tuple[int, int] | None
    """(height, width) that all images share; null where they differ."""
    template: str | None = None
    """How faces are aligned, if known: "arcface-112" is InsightFace's five-point template."""
    index_sha256: str
    shards: tuple[Shard, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of every byte that training sees; a copy elsewhere or under other shard names has the same."""
        parts = [str(self.num_images), str(self.num_identities), self.index_sha256, *(s.sha256 for s in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    path: Path
    manifest: Manifest
    shard_N: NDArray[np.uint32]
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        return np.array([s.samples for s in self.manifest.shards], np.int64)

    def shard_path(self, shard: int) -> Path:
        return self.path / self.manifest.shards[shard].name

    def name(self, sample: int) -> str:
        """`SHARD:KEY` of a sample, for people."""
        shard = int(self.shard_N[sample])
        try:
            key = member_at(self.shard_path(shard), int(self.offset_N[sample]))[0]
        except OSError:
            key = ""
        return f"{self.manifest.shards[shard].name}:{key or f'sample {sample}'}"


def open_dataset(path: str | Path) -> Dataset:
    """Open a dataset folder; costs no more for 260 million samples than for ten.

    Raises `UserError` for a folder that is none, and for an index that is not the manifest's.
    """
    path = Path(path)
    if "://" in str(path):
        raise UserError(f"data.path {path}: remote datasets cannot be read yet; copy it to a local path")
    if not (path / MANIFEST).is_file():
        what = "no such folder" if not path.is_dir() else f"no {MANIFEST} in it; make it with `manyfaces data convert|synth|index`"
        raise UserError(f"data.path {path}: {what}")
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path / MANIFEST}: {where}: {first['msg']}; run `manyfaces data index {path}`") from error
    if not (path / INDEX).is_file():
        raise UserError(f"{path / INDEX}: missing; run `manyfaces data index {path}`")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path / INDEX))).get_batch(0)
        columns = [batch.column(name).to_numpy(zero_copy_only=True) for name in COLUMNS]
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise UserError(f"{path / INDEX}: not an index of this format ({error}); run `manyfaces data index {path}`") from error
    dataset = Dataset(path, manifest, *columns)
    ends = np.cumsum(dataset.samples_per_shard)
    if len(dataset.shard_N) != manifest.num_images or ends[-1] != manifest.num_images or not _sorted_by_shard(dataset, ends):
        raise UserError(f"{path / INDEX}: its rows are not the samples of {MANIFEST}; run `manyfaces data index {path}`")
    return dataset


def _sorted_by_shard(dataset: Dataset, ends: NDArray[np.int64]) -> bool:
    expected = np.arange(len(ends))
    return bool((dataset.shard_N[ends - 1] == expected).all() and (dataset.shard_N[ends - dataset.samples_per_shard] == expected).all())


def verify(dataset: Dataset, mode: Literal["auto", "sizes", "hashes"]) -> str:
    """Compare labels and every shard with the manifest before anything is trained on it; returns what was compared.

    Sizes and the first and last member of each shard always; SHA-256 of all bytes for `hashes`, and for `auto` up to 4 GiB.
    Raises `UserError` listing every shard that is missing, shorter, longer or other.
    """
    limit = dataset.manifest.num_identities
    if (highest := int(dataset.identity_N.max())) >= limit:
        name = dataset.name(int(dataset.identity_N.argmax()))
        raise UserError(f"{dataset.path}: {name}: label {highest} is not in [0, {limit}); run `manyfaces data index {dataset.path}`")
    shards = dataset.manifest.shards
    total = sum(s.bytes for s in shards)
    hashes = mode == "hashes" or (mode == "auto" and total <= HASH_UP_TO_BYTES)
    faults: list[str] = []
    ends = np.cumsum(dataset.samples_per_shard)
    for number, (shard, end) in enumerate(zip(shards, ends, strict=True)):
        file = dataset.shard_path(number)
        if not file.is_file():
            faults.append(f"{shard.name}: missing")
        elif (size := file.stat().st_size) != shard.bytes:
            faults.append(f"{shard.name}: {size:,} bytes, expected {shard.bytes:,} ({shard.samples} samples)")
        elif any(member_at(file, int(dataset.offset_N[i]))[1] != dataset.size_N[i] for i in (end - shard.samples, end - 1)):
            faults.append(f"{shard.name}: its samples do not lie where {INDEX} says")
    if hashes and file_sha256(dataset.path / INDEX) != dataset.manifest.index_sha256:
        faults.append(f"{INDEX}: other bytes than when it was written")
    if hashes and not faults:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = pool.map(file_sha256, (dataset.shard_path(n) for n in range(len(shards))))
            if total > HASH_UP_TO_BYTES:
                digests = track(digests, "hashing shards", total=len(shards))  # type: ignore[assignment]
            faults += [f"{s.name}: other bytes than when it was indexed" for s, d in zip(shards, digests, strict=True) if d != s.sha256]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        remedy = f"restore the shards, or run `manyfaces data index {dataset.path}` to accept them as they are"
        raise UserError(f"{dataset.path}: {shown}; {remedy}")
    compared = "every byte hashed" if hashes else "sizes and ends compared, contents not hashed"
    return f"{len(shards)} shards, {total / 1e6:,.0f} MB: {compared}"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name, flush to disk, rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_index(path: Path, columns: dict[str, NDArray[np.integer]], shards: list[Shard], **facts: object) -> Manifest:
    """Write `index.arrow` and, last, `manyfaces.json`; `facts` are the manifest's remaining fields."""
    batch = pa.record_batch({name: pa.array(columns[name], dtype) for name, dtype in COLUMNS.items()})
    temporary = path / f".{INDEX}.tmp-{uuid.uuid4().hex[:8]}"
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    temporary.replace(path / INDEX)
    manifest = Manifest.model_validate(
        {**facts, "num_images": len(batch), "index_sha256": file_sha256(path / INDEX), "shards": tuple(s.model_dump() for s in shards)}
    )
    write_atomic(path / MANIFEST, json.dumps(manifest.model_dump(), indent=1) + "\n")
    return manifest
