"""`index.arrow`, the index of a dataset folder: one row a sample, memory-mapped, in the order of
the shards."""

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic
from manyfaces.data.dataset.manifest import (
    EDITS,
    FORGOTTEN,
    INDEX,
    MANIFEST,
    Manifest,
    Shard,
    parse_manifest,
)
from manyfaces.data.store.cache import RemoteSource, fetch_once
from manyfaces.data.store.remote import Remote

COLUMNS = {
    "shard": pa.uint32(),
    "offset": pa.uint64(),
    "size": pa.uint32(),
    "identity": pa.uint32(),
}
_SHARDS_COMPARED = 1000


class Columns(NamedTuple):
    """The columns of an index, one row a sample, as views of the mapped file."""

    shard_N: NDArray[np.uint32]
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]


def map_index(where: str, folder: Path, manifest: Manifest) -> Columns:
    """Map the index in `folder`; `where` names the dataset for people. Raises `UserError` for an
    index that is missing, of another format, or not of the manifest's samples."""
    if not (folder / INDEX).is_file():
        raise UserError(f"{where}/{INDEX}: missing; run `manyfaces data index {where}`")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(folder / INDEX))).get_batch(0)
        columns = Columns(*(_values(batch.column(name), dtype) for name, dtype in COLUMNS.items()))
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise UserError(
            f"{where}/{INDEX}: not an index of this format ({error}); run `manyfaces data index "
            f"{where}`"
        ) from error
    if not _of_these_samples(columns.shard_N, manifest):
        raise UserError(
            f"{where}/{INDEX}: its rows are not the samples of {MANIFEST}; run `manyfaces data "
            f"index {where}`"
        )
    return columns


def fetch_index(source: RemoteSource) -> tuple[Path, Manifest]:
    """Bring the index of a remote dataset, and what is forgotten and edited in it, to the node's
    cache; returns their folder and the manifest, which the store is asked for each time. Raises
    `UserError`."""
    remote = Remote(source.url, source.patience_s)
    body = remote.read(MANIFEST)
    manifest = parse_manifest(body, source.url)
    folder = source.dataset(manifest.fingerprint)
    fetch_once(source, remote, INDEX, folder / INDEX, manifest.index_sha256)
    write_atomic(folder / MANIFEST, body)
    for name in (FORGOTTEN, EDITS):
        if (overlay := remote.read_if_there(name)) is not None:
            write_atomic(folder / name, overlay)
        else:
            (folder / name).unlink(missing_ok=True)
    return folder, manifest


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


def _of_these_samples(shard_N: NDArray[np.uint32], manifest: Manifest) -> bool:
    """Whether the rows are as many as the manifest says and stand by shard. Only the first and the
    last row of up to 1,000 shards, spread evenly, are compared: to read every row would take a
    gigabyte of the index from a cold disk."""
    samples_per_shard = np.array([shard.samples for shard in manifest.shards], np.int64)
    ends = np.cumsum(samples_per_shard)
    if len(shard_N) != manifest.num_images or ends[-1] != manifest.num_images:
        return False
    some = np.linspace(0, len(ends) - 1, min(len(ends), _SHARDS_COMPARED)).astype(np.int64)
    first, last = shard_N[ends[some] - samples_per_shard[some]], shard_N[ends[some] - 1]
    return bool((first == some).all() and (last == some).all())
