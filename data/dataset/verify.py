"""Whether the shards of a dataset folder are those of its manifest, as far as that is quick to
tell."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.data.dataset.manifest import INDEX, Shard
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.sample import member_at
from manyfaces.data.store.cache import RemoteSource
from manyfaces.data.store.remote import Remote

HASH_UP_TO_BYTES = 4 << 30
_FAULTS_SHOWN = 5


def verify(part: Part, mode: Literal["auto", "sizes", "hashes"]) -> str:
    """Compare labels and every shard with the manifest before anything is trained on it; returns
    what was compared.

    Sizes and the first and last member of each shard are compared always; SHA-256 of all bytes for
    `hashes`, and for `auto` up to 4 GiB. At a URL only sizes are: there the contents are hashed as
    each shard is fetched. Raises `UserError` listing every shard that is missing, shorter, longer
    or other."""
    where, shards = part.where, part.manifest.shards
    _refuse_labels(part)
    total = sum(s.bytes for s in shards)
    hashes = mode == "hashes" or (mode == "auto" and total <= HASH_UP_TO_BYTES)
    faults = _local_faults(part) if part.remote is None else _remote_faults(part.remote, shards)
    if hashes and file_sha256(part.path / INDEX) != part.manifest.index_sha256:
        remove = f" in {part.path}, remove it" if part.remote is not None else ""
        faults.append(f"{INDEX}: other bytes than when it was written{remove}")
    if hashes and not faults and part.remote is None:
        faults = _hash_faults(part, shows_progress=total > HASH_UP_TO_BYTES)
    if faults:
        shown = "; ".join(faults[:_FAULTS_SHOWN])
        if len(faults) > _FAULTS_SHOWN:
            shown += f"; and {len(faults) - _FAULTS_SHOWN} more"
        remedy = (
            f"restore the shards, or run `manyfaces data index {where}` to accept them as they are"
        )
        raise UserError(f"{where}: {shown}; {remedy}")
    compared = "every byte hashed" if hashes else "sizes and ends compared, contents not hashed"
    if part.remote is not None:
        compared = "sizes compared, contents hashed as each shard is fetched"
    return f"{len(shards)} shards, {total / 1e6:,.0f} MB: {compared}"


def _refuse_labels(part: Part) -> None:
    limit = part.manifest.num_identities
    if (highest := int(part.identity_N.max())) >= limit:
        name = part.name(int(part.identity_N.argmax()))
        raise UserError(
            f"{part.where}: {name}: label {highest} is not in [0, {limit}); run `manyfaces data "
            f"index {part.where}`"
        )


def _local_faults(part: Part) -> list[str]:
    """What is wrong with the size of each shard, or with the place of its first and last sample."""
    faults: list[str] = []
    ends = np.cumsum(part.samples_per_shard)
    for number, (shard, end) in enumerate(zip(part.manifest.shards, ends, strict=True)):
        file = part.shard_path(number)
        if not file.is_file():
            faults.append(f"{shard.name}: missing")
        elif (size := file.stat().st_size) != shard.bytes:
            faults.append(
                f"{shard.name}: {size:,} bytes, expected {shard.bytes:,} ({shard.samples} samples)"
            )
        elif fault := _place_fault(part, file, (end - shard.samples, end - 1)):
            faults.append(f"{shard.name}: {fault}")
    return faults


def _place_fault(part: Part, file: Path, rows: Sequence[int]) -> str:
    """What is wrong with the places of these samples of the shard, empty where nothing is."""
    try:
        sizes = [member_at(file, int(part.offset_N[row]))[1] for row in rows]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    there = sizes == part.size_N[list(rows)].tolist()
    return "" if there else f"its samples do not lie where {INDEX} says"


def _hash_faults(part: Part, shows_progress: bool) -> list[str]:
    """The shards whose bytes are not those that were indexed."""
    shards = part.manifest.shards
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = (part.shard_path(n) for n in range(len(shards)))
        faults: Iterable[str] = pool.map(_hash_fault, files, shards)
        if shows_progress:
            faults = track(faults, "hashing shards", total=len(shards))
        return [fault for fault in faults if fault]


def _hash_fault(file: Path, shard: Shard) -> str:
    """What is wrong with the bytes of the shard, empty where they are those that were indexed."""
    try:
        digest = file_sha256(file)
    except OSError as error:
        return f"{shard.name}: cannot be read ({error.strerror})"
    return "" if digest == shard.sha256 else f"{shard.name}: other bytes than when it was indexed"


def _remote_faults(source: RemoteSource, shards: Sequence[Shard]) -> list[str]:
    """The shards that the store does not have, or in another size; a size that it does not tell is
    not held against the shard."""
    sizes = Remote(source.url, source.patience_s).sizes([s.name for s in shards])
    faults = [f"{s.name}: missing" for s in shards if s.name not in sizes]
    others = [
        (s, size) for s in shards if (size := sizes.get(s.name)) is not None and size != s.bytes
    ]
    return faults + [
        f"{s.name}: {size:,} bytes, expected {s.bytes:,} ({s.samples} samples)"
        for s, size in others
    ]
