"""A dataset: plain WebDataset shards, `index.arrow` (one row a sample, memory-mapped) and
`manyfaces.json` (what the shards must be)."""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import track

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.sample import TAR_NAME, member_at, scan
from manyfaces.data.store.cache import Far, fetch_once
from manyfaces.data.store.remote import Remote, url_of

MANIFEST, INDEX = "manyfaces.json", "index.arrow"
COLUMNS = {
    "shard": pa.uint32(),
    "offset": pa.uint64(),
    "size": pa.uint32(),
    "identity": pa.uint32(),
}
FORGOTTEN = "forgotten.json"
HASH_UP_TO_BYTES = 4 << 30
_SHARDS_LOOKED_AT = 1000


@dataclass(
    frozen=True,
    slots=True,
    # 260 million samples have 30,000 of these: as pydantic models they would take 20 MB of each
    # process
)
class Shard:
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
    shards_url: str | None = None
    """Where the shards are, if not beside this file."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of every byte that training sees; a copy elsewhere or under other shard names has
        the same."""
        parts = [
            str(self.num_images),
            str(self.num_identities),
            self.index_sha256,
            *(s.sha256 for s in self.shards),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    path: Path
    """Folder of the index; of a remote dataset in the node's cache."""
    manifest: Manifest
    shard_N: NDArray[np.uint32]
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]
    far: Far | None = None
    """Where the shards are, if at an URL."""

    @property
    def where(self) -> str:
        """The folder or URL, for people."""
        return self.far.url if self.far is not None and self.far.with_index else str(self.path)

    @property
    def parts(self) -> "tuple[Part, ...]":
        """Itself; a mixture has several."""
        return (Part(self),)

    @functools.cached_property
    def samples_per_shard(self) -> NDArray[np.int64]:
        return np.array([s.samples for s in self.manifest.shards], np.int64)

    def shard_path(self, shard: int) -> Path:
        spec = self.manifest.shards[shard]
        return self.path / spec.name if self.far is None else self.far.shard_path(spec)

    def labels(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class ids of the samples."""
        return self.identity_N[ids_N].astype(np.int64)

    def name(self, sample: int) -> str:
        """`SHARD:KEY` of a sample, for people."""
        shard = int(self.shard_N[sample])
        try:
            key = member_at(self.shard_path(shard), int(self.offset_N[sample]))[0]
        except OSError:
            key = ""
        return f"{self.manifest.shards[shard].name}:{key or f'sample {sample}'}"

    def keys(self, ids_N: NDArray[np.int64]) -> list[str]:
        """`SHARD:KEY` of each sample, as `manyfaces data forget --keys` takes it. Raises `OSError`
        for a remote shard that is not here."""
        return [self._key(sample, int(self.shard_N[sample])) for sample in ids_N.tolist()]

    def _key(self, sample: int, shard: int) -> str:
        path = self.shard_path(shard)
        folder, slash, file = member_at(path, int(self.offset_N[sample]))[0].rpartition("/")
        key = folder + slash + file.partition(".")[0]
        # A long name is cut off in the member's own header, and what is not ASCII may be replaced:
        # then the whole shard is asked.
        if not file or "?" in folder + file or len(folder + slash + file) >= TAR_NAME:
            key = _scanned_keys(path)[sample - int(self.samples_per_shard[:shard].sum())]
        # bytes that are no UTF-8 are no text
        return f"{self.manifest.shards[shard].name}:{key.encode(errors='replace').decode()}"


@functools.lru_cache(maxsize=2)
def _scanned_keys(shard: Path) -> list[str]:
    return [sample.key for sample in scan(shard)]


class Part(NamedTuple):
    """A dataset, and where its samples, classes and shards begin among those of the whole."""

    dataset: Dataset
    first_sample: int = 0
    first_class: int = 0
    first_shard: int = 0

    def slots(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the array its own samples stand."""
        return np.flatnonzero(
            (ids_N >= self.first_sample)
            & (ids_N < self.first_sample + self.dataset.manifest.num_images)
        )

    def own_shards(self, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """Its own among the shards, by the numbers they have in it."""
        local = shards - self.first_shard
        return local[(local >= 0) & (local < len(self.dataset.manifest.shards))]


def open_dataset(path: str | Path, config: schema.Data | None = None) -> Dataset:
    """Open a dataset folder, or one at an URL; costs no more for 260 million samples than for ten,
    once an URL's index is in the cache.

    `config` says where the cache is, how much it may hold and how long a store may be away. Raises
    `UserError` for a folder that is none, for an index that is not the manifest's, for a store that
    cannot be read and for a cache that is smaller than a window.
    """
    config = config or schema.Data()
    cache = Path(config.cache_dir).expanduser(), int(config.cache_gb * 1e9), config.store_patience_s
    if (url := url_of(path)) is not None:
        far = Far(url, *cache)
        folder, manifest = _fetch_index(far)
        refuse_small_cache([(far, manifest)], config)
        return _map_index(url, folder, manifest, far)
    path = Path(path)
    if not (path / MANIFEST).is_file():
        what = (
            "no such folder"
            if not path.is_dir()
            else f"no {MANIFEST} in it; make it with `manyfaces data convert|synth|index`"
        )
        raise UserError(f"dataset {path}: {what}")
    manifest = _parse((path / MANIFEST).read_bytes(), str(path))
    if manifest.shards_url is None:
        return _map_index(str(path), path, manifest)
    far = Far(manifest.shards_url, *cache, with_index=False)
    refuse_small_cache([(far, manifest)], config)
    return _map_index(str(path), path, manifest, far)


def _parse(body: bytes, where: str) -> Manifest:
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{where}/{MANIFEST}: {field}: {first['msg']}; run `manyfaces data index {where}`"
        ) from error


def _fetch_index(far: Far) -> tuple[Path, Manifest]:
    """The index, and what is forgotten, in the node's cache; the manifest is asked for each
    time."""
    remote = Remote(far.url, far.patience_s)
    body = remote.read(MANIFEST)
    manifest = _parse(body, far.url)
    folder = far.dataset(manifest.fingerprint)
    fetch_once(far, remote, INDEX, folder / INDEX, manifest.index_sha256)
    write_atomic(folder / MANIFEST, body)
    if (forgotten := remote.read_if_there(FORGOTTEN)) is not None:
        write_atomic(folder / FORGOTTEN, forgotten)
    else:
        (folder / FORGOTTEN).unlink(missing_ok=True)
    return folder, manifest


def refuse_small_cache(remote: Sequence[tuple[Far, Manifest]], config: schema.Data) -> None:
    """Raises `UserError` where the cache cannot hold what these datasets, read together, need at
    one time."""
    shards = [sorted((s.bytes for s in manifest.shards), reverse=True) for _, manifest in remote]
    near = (
        shards if config.order == "pk" else [largest[: config.window_shards] for largest in shards]
    )
    window = sum(map(sum, near))
    if window > config.cache_gb * 1e9:
        least = f"a window of {sum(map(len, near))} shards is up to {window / 1e9:.3g} GB"
        remedy = (
            f"set data.cache_gb={2.2 * window / 1e9:.2g} (two windows and some), or lower "
            "data.window_shards"
        )
        urls = " + ".join(far.url for far, _ in remote)
        raise UserError(
            f"data.cache_gb {config.cache_gb:g} is too small for {urls}: {least}; {remedy}"
        )


def _map_index(where: str, folder: Path, manifest: Manifest, far: Far | None = None) -> Dataset:
    if not (folder / INDEX).is_file():
        raise UserError(f"{where}/{INDEX}: missing; run `manyfaces data index {where}`")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(folder / INDEX))).get_batch(0)
        columns = {
            f"{name}_N": _values(batch.column(name), dtype) for name, dtype in COLUMNS.items()
        }
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise UserError(
            f"{where}/{INDEX}: not an index of this format ({error}); run `manyfaces data index "
            f"{where}`"
        ) from error
    dataset = Dataset(folder, manifest, **columns, far=far)
    ends = np.cumsum(dataset.samples_per_shard)
    if (
        len(dataset.shard_N) != manifest.num_images
        or ends[-1] != manifest.num_images
        or not _sorted_by_shard(dataset, ends)
    ):
        raise UserError(
            f"{where}/{INDEX}: its rows are not the samples of {MANIFEST}; run `manyfaces data "
            f"index {where}`"
        )
    return dataset


def _values(column: pa.Array, dtype: pa.DataType) -> NDArray[Any]:
    """A view of the column in the mapped file. pyarrow's `to_numpy` and `to_pandas_dtype` import
    pandas: 0.5 s and 30 MB a process."""
    if column.type != dtype or column.null_count:
        raise pa.ArrowInvalid(
            f"a column is {column.type} with {column.null_count} nulls, not {dtype}"
        )
    return np.frombuffer(
        column.buffers()[1], str(dtype), len(column), column.offset * dtype.bit_width // 8
    )


def _sorted_by_shard(dataset: Dataset, ends: NDArray[np.int64]) -> bool:
    """Looks at both ends of up to 1,000 shards spread evenly: every one would read a gigabyte of
    the index from a cold disk."""
    some = np.linspace(0, len(ends) - 1, min(len(ends), _SHARDS_LOOKED_AT)).astype(np.int64)
    first, last = (
        dataset.shard_N[ends[some] - dataset.samples_per_shard[some]],
        dataset.shard_N[ends[some] - 1],
    )
    return bool((first == some).all() and (last == some).all())


def verify(dataset: Dataset, mode: Literal["auto", "sizes", "hashes"]) -> str:
    """Compare labels and every shard with the manifest before anything is trained on it; returns
    what was compared.

    Sizes and the first and last member of each shard always; SHA-256 of all bytes for `hashes`, and
    for `auto` up to 4 GiB. At an URL sizes only: there the contents are hashed as each shard is
    fetched. Raises `UserError` listing every shard that is missing, shorter, longer or other.
    """
    limit, where = dataset.manifest.num_identities, dataset.where
    if (highest := int(dataset.identity_N.max())) >= limit:
        name = dataset.name(int(dataset.identity_N.argmax()))
        raise UserError(
            f"{where}: {name}: label {highest} is not in [0, {limit}); run `manyfaces data index "
            f"{where}`"
        )
    shards = dataset.manifest.shards
    total = sum(s.bytes for s in shards)
    hashes = mode == "hashes" or (mode == "auto" and total <= HASH_UP_TO_BYTES)
    faults = _far_faults(dataset.far, shards) if dataset.far is not None else _near_faults(dataset)
    if hashes and file_sha256(dataset.path / INDEX) != dataset.manifest.index_sha256:
        faults.append(
            f"{INDEX}: other bytes than when it was written"
            + (f" in {dataset.path}, remove it" if dataset.far is not None else "")
        )
    if hashes and not faults and dataset.far is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = pool.map(file_sha256, (dataset.shard_path(n) for n in range(len(shards))))
            if total > HASH_UP_TO_BYTES:
                digests = track(digests, "hashing shards", total=len(shards))  # type: ignore[assignment]
            faults += [
                f"{s.name}: other bytes than when it was indexed"
                for s, d in zip(shards, digests, strict=True)
                if d != s.sha256
            ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        remedy = (
            f"restore the shards, or run `manyfaces data index {where}` to accept them as they are"
        )
        raise UserError(f"{where}: {shown}; {remedy}")
    compared = "every byte hashed" if hashes else "sizes and ends compared, contents not hashed"
    if dataset.far is not None:
        compared = "sizes compared, contents hashed as each shard is fetched"
    return f"{len(shards)} shards, {total / 1e6:,.0f} MB: {compared}"


def _near_faults(dataset: Dataset) -> list[str]:
    faults: list[str] = []
    ends = np.cumsum(dataset.samples_per_shard)
    for number, (shard, end) in enumerate(zip(dataset.manifest.shards, ends, strict=True)):
        file = dataset.shard_path(number)
        if not file.is_file():
            faults.append(f"{shard.name}: missing")
        elif (size := file.stat().st_size) != shard.bytes:
            faults.append(
                f"{shard.name}: {size:,} bytes, expected {shard.bytes:,} ({shard.samples} samples)"
            )
        elif any(
            member_at(file, int(dataset.offset_N[i]))[1] != dataset.size_N[i]
            for i in (end - shard.samples, end - 1)
        ):
            faults.append(f"{shard.name}: its samples do not lie where {INDEX} says")
    return faults


def _far_faults(far: Far, shards: Sequence[Shard]) -> list[str]:
    """A size that the store does not tell is not held against the shard."""
    sizes = Remote(far.url, far.patience_s).sizes([s.name for s in shards])
    faults = [f"{s.name}: missing" for s in shards if s.name not in sizes]
    others = [
        (s, size) for s in shards if (size := sizes.get(s.name)) is not None and size != s.bytes
    ]
    return faults + [
        f"{s.name}: {size:,} bytes, expected {s.bytes:,} ({s.samples} samples)"
        for s, size in others
    ]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name, flush to disk, rename: a reader sees the old file or the new
    one."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_index(
    path: Path, columns: dict[str, NDArray[np.integer]], shards: list[Shard], **facts: object
) -> Manifest:
    """Write `index.arrow` and, last, `manyfaces.json`; `facts` are the manifest's remaining
    fields."""
    batch = pa.record_batch(
        {name: pa.array(columns[name], dtype) for name, dtype in COLUMNS.items()}
    )
    temporary = path / f".{INDEX}.tmp-{uuid.uuid4().hex[:8]}"
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    temporary.replace(path / INDEX)
    manifest = Manifest.model_validate(
        {
            **facts,
            "num_images": len(batch),
            "index_sha256": file_sha256(path / INDEX),
            "shards": tuple(shards),
        }
    )
    write_atomic(path / MANIFEST, json.dumps(manifest.model_dump(), indent=1) + "\n")
    return manifest
