"""Index rows of shards that stand, and the index and manifest that make shards a dataset."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.data.dataset.index import write_index
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, Shard
from manyfaces.data.dataset.sample import jpeg_size, scan
from manyfaces.data.parallel import run_parallel

BYTES_AN_IMAGE = 6000
"""A guess for progress bars, where images are not counted yet."""
_JPEG_HEADER_BYTES = 4096


@dataclass(frozen=True)
class IndexedShard:
    """A shard and its rows of the index."""

    shard: Shard
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]
    sizes: set[tuple[int, int] | None]
    """The (height, width) that occur; None for an image that does not tell."""
    digest_N: NDArray[np.uint64] | None = None
    """64 bits of each image's BLAKE2b, where they were asked for."""


def index_shard(path: Path) -> IndexedShard:
    """Scan one shard. Raises `UserError` for a torn one, and for one that holds no sample."""
    samples = list(scan(path))
    if not samples:
        raise UserError(f"{path}: holds no sample (a .jpg with a .cls or .json of the same key)")
    with path.open("rb") as file:
        sizes = {
            jpeg_size(os.pread(file.fileno(), min(s.size, _JPEG_HEADER_BYTES), s.offset))
            for s in samples
        }
    shard = Shard(
        name=path.name, bytes=path.stat().st_size, samples=len(samples), sha256=file_sha256(path)
    )
    return IndexedShard(
        shard,
        np.array([s.offset for s in samples], np.uint64),
        np.array([s.size for s in samples], np.uint32),
        np.array([s.identity for s in samples], np.uint32),
        sizes,
    )


def commit_shards(
    out: Path, indexed: Sequence[IndexedShard], num_identities: int, template: str | None
) -> Manifest:
    """Write the index and, last, the manifest of the shards."""
    samples = [one.shard.samples for one in indexed]
    columns: dict[str, NDArray[np.integer]] = {
        "shard": np.repeat(np.arange(len(indexed), dtype=np.uint32), samples),
        "offset": np.concatenate([one.offset_N for one in indexed]),
        "size": np.concatenate([one.size_N for one in indexed]),
        "identity": np.concatenate([one.identity_N for one in indexed]),
    }
    sizes = set().union(*(one.sizes for one in indexed))
    image_px = next(iter(sizes)) if len(sizes) == 1 else None
    shards = [one.shard for one in indexed]
    return write_index(
        out, columns, shards, num_identities=num_identities, image_px=image_px, template=template
    )


def commit_foreign_shards(folder: Path, indexed: Sequence[IndexedShard], where: str) -> Manifest:
    """Write index and manifest of shards that others wrote, whose number of identities is the
    highest label + 1. Raises `UserError` for labels that leave more than half of them unused."""
    used = np.unique(np.concatenate([np.unique(one.identity_N) for one in indexed]))
    num_identities = int(used[-1]) + 1
    if num_identities > 2 * len(used):
        raise UserError(
            f"{where}: {len(used)} identities with labels up to {num_identities - 1}; re-label "
            f"them to 0..{len(used) - 1}"
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    return commit_shards(folder, indexed, num_identities, None)


def index_folder(folder: Path, processes: int | None = None) -> Manifest:
    """Index shards that others wrote, in place. Labels must be integers 0..C-1; C is the highest +
    1.

    Raises `UserError` for a folder without shards, a torn shard, and labels that leave more than
    half of 0..C-1 unused.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder}: no .tar files in it")
    weights = [max(path.stat().st_size // BYTES_AN_IMAGE, 1) for path in shards]
    tasks = [partial(index_shard, path) for path in shards]
    indexed = run_parallel(tasks, weights, f"indexing {folder}", processes)
    return commit_foreign_shards(folder, indexed, str(folder))
