"""Shards, atomically: many processes write one shard each, a killed run goes on where it stopped.
The one file that knows webdataset."""

import hashlib
import json
import multiprocessing
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import webdataset
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import (
    MANIFEST,
    Manifest,
    Shard,
    file_sha256,
    write_atomic,
    write_index,
)
from manyfaces.data.dataset.sample import jpeg_size, scan
from manyfaces.data.progress import ImageBar

T = TypeVar("T")
PLAN, DROPPED, IDENTITIES = "write.json", "dropped.jsonl", "identities.txt"


class Dropped(Exception):
    """Raised by a reader for one image that cannot be used; the message says why, in the same words
    for each such image."""


class Item(NamedTuple):
    """One image to be written: what the reader needs to get it, its key in the shard and its
    class."""

    source: object
    key: str
    identity: int


class Items(Protocol):
    """Images in the order in which they are written; a slice is made when its shard is. A list is
    one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Sequence[Item]: ...


@dataclass(frozen=True)
class Indexed:
    """One shard's rows of the index."""

    shard: Shard
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]
    sizes: set[tuple[int, int] | None]
    """(height, width) that occur."""
    digest_N: NDArray[np.uint64] | None = None
    """64 bits of each image's BLAKE2b, where asked for."""


@dataclass(frozen=True)
class Written:
    """All that was written, before it is committed: a row an image, in the order of the shards."""

    identity_N: NDArray[np.uint32]
    digest_N: NDArray[np.uint64]
    dropped: Counter[str]
    """Images by the reason why they were dropped."""
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
    `dropped_before`; `report` is called before the manifest is written. Raises `UserError`.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = json.dumps(
        {
            **source,
            "images": len(items),
            "identities": len(identities),
            "shard_images": shard_images,
        },
        indent=1,
    )
    if (out / PLAN).exists() and (out / PLAN).read_text() != plan:
        raise UserError(
            f"{out}: holds shards of another source or other options (see {out / PLAN}); give an "
            "empty folder"
        )
    refuse_foreign(out)
    write_atomic(out / PLAN, plan)
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()

    starts = range(0, len(items), shard_images)
    paths = [out / f"shard-{n:06d}.tar" for n in range(len(starts))]
    tasks = (
        partial(_write_shard, path, items[s : s + shard_images], read)
        for path, s in zip(paths, starts, strict=True)
    )
    weights = [min(shard_images, len(items) - start) for start in starts]
    indexed = run_parallel(tasks, weights, f"writing {out}", processes)
    dropped = sum((reasons for _, reasons in indexed), Counter[str]())
    _join_dropped(out / DROPPED, dropped_before, paths)
    write_atomic(out / IDENTITIES, "".join(name + "\n" for name in identities))
    parts = [part for part, _ in indexed if part is not None]
    if not parts:
        why = ", ".join(f"{count:,} x {reason}" for reason, count in dropped.most_common(3))
        raise UserError(
            f"{out}: not one of {len(items):,} images could be used: {why}; see {out / DROPPED}"
        )
    if report:
        digests = np.concatenate([p.digest_N for p in parts if p.digest_N is not None])
        report(
            Written(
                np.concatenate([p.identity_N for p in parts]),
                digests,
                dropped,
                sum(p.shard.bytes for p in parts),
            )
        )
    manifest = finish(out, parts, len(identities), template)
    for path in set(paths) - {
        out / part.shard.name for part in parts
    }:  # not one image of it could be used
        path.unlink()
    (out / PLAN).unlink()
    return manifest


def refuse_foreign(out: Path) -> None:
    """Raises `UserError` for a folder with shards that no conversion is to complete."""
    if not (out / PLAN).exists() and any(out.glob("*.tar")):
        raise UserError(f"{out}: already holds shards; give an empty folder")


def run_parallel(
    tasks: Iterable[Callable[[], T]],
    weights: Sequence[int],
    title: str,
    processes: int | None = None,
) -> list[T]:
    """Results of the tasks in their order, under one progress bar counted in `weights` (images).

    They run in processes of their own (one process: in this one). A task is taken when a process is
    about to be free for it, so that `tasks` may be made as they are needed. Raises `UserError`
    where the system ended one of the processes.
    """
    results: dict[int, T] = {}
    processes = processes or os.cpu_count() or 1
    with ImageBar(title, sum(weights)) as bar:
        for number, result in (
            _run_here(tasks) if processes == 1 else _run_apart(tasks, processes, title)
        ):
            results[number] = result
            bar.count(weights[number])
    return [results[number] for number in range(len(results))]


def _run_here(tasks: Iterable[Callable[[], T]]) -> Iterator[tuple[int, T]]:
    return ((number, task()) for number, task in enumerate(tasks))


def _run_apart(
    tasks: Iterable[Callable[[], T]], processes: int, title: str
) -> Iterator[tuple[int, T]]:
    context = multiprocessing.get_context(
        "spawn"
    )  # forking a process that has threads can deadlock
    running: dict[Future[T], int] = {}
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:

        def finished(at_most: int) -> Iterator[tuple[int, T]]:
            while len(running) > at_most:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()

        try:
            for number, task in enumerate(tasks):
                running[pool.submit(task)] = number
                yield from finished(2 * processes - 1)
            yield from finished(0)
        except BrokenProcessPool as error:
            raise UserError(
                f"{title}: a process was ended from outside (out of memory?); give fewer "
                "--processes and run it again"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever when theirs was killed with -9: they hold each
    other's pipes open."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(
    path: Path, items: Sequence[Item], read: Callable[[object], bytes]
) -> tuple[Indexed | None, Counter[str]]:
    """Write one shard, or take it as it is if it stands; what was dropped stands beside it until
    the dataset is whole."""
    dropped: list[dict[str, str]] = []
    sidecar = path.with_suffix(".dropped")
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        with temporary.open("wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
                for item in items:
                    try:
                        image = read(item.source)
                    except Dropped as reason:
                        dropped.append(
                            {"key": item.key, "source": str(item.source), "reason": str(reason)}
                        )
                        continue
                    tar.write(
                        {"__key__": item.key, "jpg": image, "cls": str(item.identity).encode()}
                    )
            file.flush()
            os.fsync(file.fileno())
        # What was dropped must outlive a kill that comes after this shard is done.
        if dropped:
            write_atomic(sidecar, "".join(json.dumps(row) + "\n" for row in dropped))
        temporary.replace(path)
    elif sidecar.exists():
        dropped = [json.loads(line) for line in sidecar.read_text().splitlines()]
    reasons = Counter(row["reason"] for row in dropped)
    return (_with_digests(path, index_shard(path)) if len(dropped) < len(items) else None), reasons


def _with_digests(path: Path, part: Indexed) -> Indexed:
    with path.open("rb") as file:
        blobs = (
            os.pread(file.fileno(), size, at)
            for at, size in zip(part.offset_N.tolist(), part.size_N.tolist(), strict=True)
        )
        words = b"".join(hashlib.blake2b(blob, digest_size=8).digest() for blob in blobs)
    return replace(part, digest_N=np.frombuffer(words, np.uint64))


def _join_dropped(path: Path, before: Iterable[dict[str, object]], shards: Sequence[Path]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in before)
        for sidecar in (shard.with_suffix(".dropped") for shard in shards):
            if sidecar.exists():
                file.write(sidecar.read_text())
    temporary.replace(path)


def index_shard(path: Path) -> Indexed:
    """Scan one shard. Raises `UserError` for a torn one, and for one that holds no sample."""
    samples = list(scan(path))
    if not samples:
        raise UserError(f"{path}: holds no sample (a .jpg with a .cls or .json of the same key)")
    with path.open("rb") as file:
        sizes = {jpeg_size(os.pread(file.fileno(), min(s.size, 4096), s.offset)) for s in samples}
    shard = Shard(
        name=path.name, bytes=path.stat().st_size, samples=len(samples), sha256=file_sha256(path)
    )
    offsets, bytes_, identities = (
        np.array(column) for column in list(zip(*samples, strict=True))[1:]
    )
    return Indexed(
        shard,
        offsets.astype(np.uint64),
        bytes_.astype(np.uint32),
        identities.astype(np.uint32),
        sizes,
    )


def finish(
    out: Path, parts: Sequence[Indexed], num_identities: int, template: str | None
) -> Manifest:
    """Write the index and the manifest of the indexed shards, and remove what only a restart
    needed."""
    columns: dict[str, NDArray[np.integer]] = {
        "shard": np.repeat(
            np.arange(len(parts), dtype=np.uint32), [p.shard.samples for p in parts]
        ),
        "offset": np.concatenate([p.offset_N for p in parts]),
        "size": np.concatenate([p.size_N for p in parts]),
        "identity": np.concatenate([p.identity_N for p in parts]),
    }
    sizes = set().union(*(p.sizes for p in parts))
    image_px = next(iter(sizes)) if len(sizes) == 1 else None
    shards = [p.shard for p in parts]
    manifest = write_index(
        out, columns, shards, num_identities=num_identities, image_px=image_px, template=template
    )
    for leftover in out.glob("*.dropped"):
        leftover.unlink()
    return manifest


def index_folder(folder: Path, processes: int | None = None) -> Manifest:
    """Index shards that others wrote, in place. Labels must be integers 0..C-1; C is the highest +
    1.

    Raises `UserError` for a folder without shards, a torn shard, and labels that leave more than
    half of 0..C-1 unused.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder}: no .tar files in it")
    weights = [max(path.stat().st_size // 6000, 1) for path in shards]
    parts = run_parallel(
        [partial(index_shard, path) for path in shards], weights, f"indexing {folder}", processes
    )
    return finish_foreign(folder, parts, str(folder))


def finish_foreign(folder: Path, parts: Sequence[Indexed], where: str) -> Manifest:
    """Likewise of shards that others wrote. Raises `UserError` for labels that leave more than half
    of 0..C-1 unused."""
    used = np.unique(np.concatenate([np.unique(p.identity_N) for p in parts]))
    if (highest := int(used[-1])) + 1 > 2 * len(used):
        raise UserError(
            f"{where}: {len(used)} identities with labels up to {highest}; re-label them to "
            f"0..{len(used) - 1}"
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    return finish(folder, parts, highest + 1, None)
