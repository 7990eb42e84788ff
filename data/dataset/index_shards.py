"""Index rows of shards that stand, and the index and manifest that make shards a dataset."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.data.dataset.index import write_index
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, Shard
from manyfaces.data.dataset.sample import jpeg_size
from manyfaces.data.dataset.scan import scan
from manyfaces.data.parallel import run_parallel

BYTES_AN_IMAGE = 6000
"""A guess for progress bars, where images are not counted yet."""
_JPEG_HEADER_BYTES = 4096
_TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)


class MembersLeftOut(NamedTuple):
    """Members of shards that are left out for one reason."""

    members: int
    first: str
    """`SHARD:MEMBER` of one of them."""


@dataclass(frozen=True)
class IndexedShard:
    """A shard and its rows of the index."""

    shard: Shard
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]
    sizes: set[tuple[int, int] | None]
    """The (height, width) that occur; None for an image that does not tell."""
    left_out: Mapping[str, MembersLeftOut]
    """Members that are no part of a sample, by the reason why."""
    digest_N: NDArray[np.uint64] | None = None
    """64 bits of each image's BLAKE2b, where they were asked for."""


def index_shard(path: Path) -> IndexedShard:
    """Scan one shard. Raises `UserError` for a torn one, for one that holds no sample, and for
    members that contradict each other, as `scan` says."""
    left_out: dict[str, MembersLeftOut] = {}

    def leave_out(reason: str, member: str) -> None:
        before = left_out.get(reason, MembersLeftOut(0, f"{path.name}:{member}"))
        left_out[reason] = before._replace(members=before.members + 1)

    samples = list(scan(path, leave_out))
    if not samples:
        told = "; ".join(_told(left_out))
        raise UserError(
            f"{path}: holds no sample (a .jpg with a .cls or .json of the same key){told and ': '}"
            f"{told}"
        )
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
        left_out,
    )


def _told(left_out: Mapping[str, MembersLeftOut]) -> list[str]:
    """For people, a line for each reason."""
    return [
        f"left out: {count:,} {'member' if count == 1 else 'members'} {reason}, such as {first}"
        for reason, (count, first) in left_out.items()
    ]


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


def commit_foreign_shards(
    folder: Path, indexed: Sequence[IndexedShard], where: str, tell: Callable[[str], None]
) -> Manifest:
    """Write index and manifest of shards that others wrote, whose number of identities is the
    highest label + 1; `tell` gets a line for each reason for which members are left out. Raises
    `UserError` for labels that leave more than half of the identities unused."""
    used = np.unique(np.concatenate([np.unique(one.identity_N) for one in indexed]))
    num_identities = int(used[-1]) + 1
    if num_identities > 2 * len(used):
        raise UserError(
            f"{where}: {len(used)} identities with labels up to {num_identities - 1}; re-label "
            f"them to 0..{len(used) - 1}"
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    manifest = commit_shards(folder, indexed, num_identities, None)
    left_out: dict[str, MembersLeftOut] = {}
    for shard in indexed:
        for reason, (count, first) in shard.left_out.items():
            before = left_out.get(reason, MembersLeftOut(0, first))
            left_out[reason] = before._replace(members=before.members + count)
    for line in _told(left_out):
        tell(line)
    return manifest


def index_folder(
    folder: Path,
    processes: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Index shards that others wrote, in place. Labels must be integers 0..C-1; C is the highest +
    1. `tell` gets a line for each reason for which members or files are left out.

    Raises `UserError` for a folder without shards, a shard that `scan` refuses, a compressed one,
    and labels that leave more than half of 0..C-1 unused.
    """
    shards = _shards(folder, tell)
    weights = [max(path.stat().st_size // BYTES_AN_IMAGE, 1) for path in shards]
    tasks = [partial(index_shard, path) for path in shards]
    indexed = run_parallel(tasks, weights, f"indexing {folder}", processes)
    return commit_foreign_shards(folder, indexed, str(folder), tell)


def _shards(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """The shards of the folder, by name. Raises `UserError` for a compressed one, and where there
    is none."""
    files = sorted(file for file in folder.iterdir() if _TAR.search(file.name))
    shards = [f for f in files if f.suffix.lower() == ".tar" and not f.name.startswith(".")]
    for file in files:
        if file.suffix.lower() != ".tar" and not file.name.startswith("."):
            raise UserError(
                f"{file}: compressed; decompress it, since samples are read at their places in a "
                "plain tar"
            )
    for file in shards:
        if not file.name.isprintable():
            raise UserError(f"{folder}: the shard's name {file.name!a} is no text; rename it")
    if not shards:
        raise UserError(f"{folder}: no .tar files in it")
    left_out = [f for f in files if f.suffix.lower() == ".tar" and f not in shards]
    below = [file for file in folder.glob("*/*.tar") if not file.name.startswith(".")]
    if left_out:
        tell(f"left out: {len(left_out)} hidden files that end in .tar, such as {left_out[0].name}")
    if below:
        example = below[0].relative_to(folder)
        tell(f"left out: {len(below)} .tar files in folders below, such as {example}")
    return shards
