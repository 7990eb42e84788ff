"""Shards, written atomically: many processes write one shard each, and a killed run goes on where
it stopped. This is the one file that knows webdataset."""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import webdataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.parsed import parsed
from manyfaces.data.dataset.index_shards import IndexedShard, commit_shards, index_shard
from manyfaces.data.dataset.manifest import IDENTITIES, Manifest
from manyfaces.data.parallel import run_parallel
from manyfaces.data.sources.source import Dropped

PLAN, DROPPED = "write.json", "dropped.jsonl"


class Item(NamedTuple):
    """One image to be written: what the reader needs to get it, its key in the shard and its
    class."""

    source: object
    key: str
    identity: int


class _DroppedImage(BaseModel):
    """A line of a shard's `.dropped` file."""

    model_config = ConfigDict(strict=True)
    key: str
    source: str
    reason: str


class Items(Protocol):
    """Images in the order in which they are written; a slice is made when its shard is. A list is
    one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Sequence[Item]: ...


@dataclass(frozen=True)
class Written:
    """All images that were written, before the dataset is committed: a row an image, in the order
    of the shards."""

    identity_N: NDArray[np.uint32]
    digest_N: NDArray[np.uint64]
    """64 bits of each image's BLAKE2b."""
    dropped: Counter[str]
    """How many images were dropped, by the reason why."""
    bytes: int


def write_dataset(
    out: Path,
    items: Items,
    read: Callable[[object], bytes],
    identities: Sequence[str],
    *,
    source: dict[str, object],
    shard_images: int = 8192,
    processes: int | None = None,
    template: str | None = None,
    dropped_before: Iterable[dict[str, object]] = (),
    report: Callable[[Written], None] | None = None,
) -> Manifest:
    """Write `items` in the order given as shards of `shard_images`, then the index, the identity
    names and, last, the manifest.

    `read(item.source)` gives JPEG bytes or raises `Dropped`; it runs in other processes. `source`
    says what is converted: a folder that holds shards of another source is refused, one that holds
    some of the same is completed. What was dropped is listed in `dropped.jsonl`, after the rows of
    `dropped_before`; `report` is called before the manifest is written. Raises `UserError`, for a
    disk that fails too: nothing is dropped for it.
    """
    facts = {"images": len(items), "identities": len(identities), "shard_images": shard_images}
    _begin(out, json.dumps({**source, **facts}, indent=1))
    starts = range(0, len(items), shard_images)
    paths = [out / f"shard-{n:06d}.tar" for n in range(len(starts))]
    tasks = (
        partial(_write_shard, path, items[start : start + shard_images], read)
        for path, start in zip(paths, starts, strict=True)
    )
    weights = [min(shard_images, len(items) - start) for start in starts]
    results = run_parallel(tasks, weights, f"writing {out}", processes)
    dropped = sum((reasons for _, reasons in results), Counter[str]())
    _join_dropped(out / DROPPED, dropped_before, paths)
    write_atomic(out / IDENTITIES, "".join(name + "\n" for name in identities))
    indexed = [one for one, _ in results if one is not None]
    if not indexed:
        why = ", ".join(f"{count:,} x {reason}" for reason, count in dropped.most_common(3))
        raise UserError(
            f"{out}: not one of {len(items):,} images could be used: {why}; see {out / DROPPED}"
        )
    if report:
        report(_written(indexed, dropped))
    # At each of these steps a kill leaves what the same command completes.
    for without_images in set(paths) - {out / one.shard.name for one in indexed}:
        without_images.unlink()
    manifest = commit_shards(out, indexed, len(identities), template)
    (out / PLAN).unlink()
    for leftover in out.glob("*.dropped"):
        leftover.unlink()
    return manifest


def refuse_foreign(out: Path) -> None:
    """Raise `UserError` for a folder with shards that no conversion is to complete."""
    if not (out / PLAN).exists() and any(out.glob("*.tar")):
        raise UserError(f"{out}: already holds shards; give an empty folder")


def _begin(out: Path, plan: str) -> None:
    """Make the folder ready to be written, or completed, by this plan. Raises `UserError` where it
    holds other shards."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).exists() and (out / PLAN).read_bytes() != plan.encode():
        raise UserError(
            f"{out}: holds shards of another source or other options (see {out / PLAN}); give an "
            "empty folder"
        )
    refuse_foreign(out)
    write_atomic(out / PLAN, plan)
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()


def _written(indexed: Sequence[IndexedShard], dropped: Counter[str]) -> Written:
    return Written(
        np.concatenate([one.identity_N for one in indexed]),
        np.concatenate([one.digest_N for one in indexed if one.digest_N is not None]),
        dropped,
        sum(one.shard.bytes for one in indexed),
    )


def _write_shard(
    path: Path, items: Sequence[Item], read: Callable[[object], bytes]
) -> tuple[IndexedShard | None, Counter[str]]:
    """Write one shard, or take it as it is if it stands; returns it, None where not one image could
    be used, and how many images were dropped by the reason why."""
    dropped: list[dict[str, str]] = []
    dropped_file = path.with_suffix(".dropped")
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        with temporary.open("wb") as file:
            dropped = _write_tar(file, items, read)
            file.flush()
            os.fsync(file.fileno())
        # What was dropped must outlive a kill that comes after this shard is done, so it stands
        # beside the shard until the dataset is whole.
        if dropped:
            write_atomic(dropped_file, "".join(json.dumps(row) + "\n" for row in dropped))
        temporary.replace(path)
    elif dropped_file.exists():
        dropped = _read_dropped(dropped_file, path)
    reasons = Counter(row["reason"] for row in dropped)
    if len(dropped) == len(items):
        return None, reasons
    indexed = index_shard(path)
    if len(indexed.size_N) + len(dropped) != len(items):
        raise UserError(
            f"{path}: holds {len(indexed.size_N):,} of {len(items):,} images and {len(dropped):,} "
            f"are told as left out; {_anew(path)}"
        )
    return _with_digests(path, indexed), reasons


def _read_dropped(file: Path, shard: Path) -> list[dict[str, str]]:
    """The rows of a shard's `.dropped` file. Raises `UserError` for a line that is none."""
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    return [
        parsed(_DroppedImage, line, f"{file}:{number}", _anew(shard)).model_dump()
        for number, line in enumerate(lines, 1)
    ]


def _anew(shard: Path) -> str:
    return f"remove {shard.name} beside it and run the same command, which writes that shard anew"


def _write_tar(
    file: BinaryIO, items: Sequence[Item], read: Callable[[object], bytes]
) -> list[dict[str, str]]:
    """Write the images that can be used; returns a row for each that was dropped."""
    dropped: list[dict[str, str]] = []
    with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for item in items:
            try:
                image = read(item.source)
            except Dropped as reason:
                row = {"key": item.key, "source": str(item.source), "reason": str(reason)}
                dropped.append(row)
                continue
            except OSError as error:
                raise UserError(
                    f"{item.source}: cannot be read ({error.strerror or error}); run the same "
                    "command again, which goes on from the shards that are done"
                ) from error
            tar.write({"__key__": item.key, "jpg": image, "cls": str(item.identity).encode()})
    return dropped


def _with_digests(path: Path, indexed: IndexedShard) -> IndexedShard:
    """Add the digests of the images."""
    places = zip(indexed.offset_N.tolist(), indexed.size_N.tolist(), strict=True)
    with path.open("rb") as file:
        blobs = (os.pread(file.fileno(), size, offset) for offset, size in places)
        words = b"".join(hashlib.blake2b(blob, digest_size=8).digest() for blob in blobs)
    return replace(indexed, digest_N=np.frombuffer(words, np.uint64))


def _join_dropped(path: Path, before: Iterable[dict[str, object]], shards: Sequence[Path]) -> None:
    """Write one file of the rows `before` and of what was dropped from each shard."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in before)
        for shard in shards:
            dropped_file = shard.with_suffix(".dropped")
            if dropped_file.exists():
                file.write(dropped_file.read_text())
    temporary.replace(path)
