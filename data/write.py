"""Shards, atomically: many processes write one shard each, a killed run goes on where it stopped. The one file that knows webdataset."""

import json
import multiprocessing
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import webdataset
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manyfaces.configs.schema import UserError
from manyfaces.data.index import MANIFEST, Manifest, Shard, file_sha256, write_atomic, write_index
from manyfaces.data.sample import Sample, jpeg_size, scan

T = TypeVar("T")
PLAN, DROPPED, IDENTITIES = "write.json", "dropped.jsonl", "identities.txt"


class Dropped(Exception):
    """Raised by a reader for one image that cannot be used; the message says why."""


class Item(NamedTuple):
    """One image to be written: what the reader needs to get it, its key in the shard and its class."""

    source: object
    key: str
    identity: int


@dataclass(frozen=True)
class Indexed:
    """One shard's rows of the index."""

    shard: Shard
    samples: list[Sample]
    sizes: set[tuple[int, int] | None]
    """(height, width) that occur."""


def write_dataset(
    out: Path,
    items: Sequence[Item],
    read: Callable[[object], bytes],
    identities: Sequence[str],
    *,
    source: dict[str, object],
    shard_images: int = 8192,
    processes: int | None = None,
    template: str | None = None,
) -> Manifest:
    """Write `items` in the order given as shards of `shard_images`, then the index, the identity names and, last, the manifest.

    `read(item.source)` gives JPEG bytes or raises `Dropped`; it runs in other processes. `source` says what is converted: a folder
    that holds shards of another source is refused, one that holds some of the same is completed. What was dropped is listed in
    `dropped.jsonl`. Raises `UserError`.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = json.dumps({**source, "images": len(items), "identities": len(identities), "shard_images": shard_images}, indent=1)
    if (out / PLAN).exists() and (out / PLAN).read_text() != plan:
        raise UserError(f"{out}: holds shards of another source or other options (see {out / PLAN}); give an empty folder")
    if not (out / PLAN).exists() and any(out.glob("*.tar")):
        raise UserError(f"{out}: already holds shards; give an empty folder")
    write_atomic(out / PLAN, plan)
    for leftover in out.glob(".*.tmp-*"):
        leftover.unlink()

    starts = range(0, len(items), shard_images)
    names = [f"shard-{n:06d}.tar" for n in range(len(starts))]
    tasks = [
        partial(_write_shard, out / name, items[start : start + shard_images], read) for name, start in zip(names, starts, strict=True)
    ]
    indexed = run_parallel(tasks, [len(items[s : s + shard_images]) for s in starts], f"writing {out}", processes)
    dropped = [row for _, rows in indexed for row in rows]
    write_atomic(out / DROPPED, "".join(json.dumps(row) + "\n" for row in dropped))
    write_atomic(out / IDENTITIES, "".join(name + "\n" for name in identities))
    parts = [part for part, _ in indexed if part is not None]
    if not parts:
        raise UserError(f"{out}: not one of {len(items)} images could be used; see {out / DROPPED}")
    if without := sorted(set(range(len(identities))) - {sample.identity for part in parts for sample in part.samples}):
        shown = ", ".join(identities[i] for i in without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        raise UserError(f"{out}: not one image of {shown} could be used (see {out / DROPPED}); take them out of the source")
    manifest = finish(out, parts, len(identities), template)
    (out / PLAN).unlink()
    return manifest


def run_parallel(tasks: Sequence[Callable[[], T]], weights: Sequence[int], title: str, processes: int | None = None) -> list[T]:
    """Results of the tasks in their order, run in processes of their own under one progress bar counted in `weights` (images)."""
    results: dict[int, T] = {}
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can deadlock
    with Progress(*columns) as bar, ProcessPoolExecutor(processes or os.cpu_count(), context) as pool:
        shown = bar.add_task(title, total=sum(weights), rate="")
        futures = {pool.submit(task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                bar.update(shown, advance=weights[futures[future]])
                bar.update(shown, rate=f"{bar.tasks[0].completed / max(bar.tasks[0].elapsed or 0, 1e-3):,.0f} images/s")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[number] for number in range(len(tasks))]


def _write_shard(path: Path, items: Sequence[Item], read: Callable[[object], bytes]) -> tuple[Indexed | None, list[dict[str, str]]]:
    dropped: list[dict[str, str]] = []
    if not path.exists():
        temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        with temporary.open("wb") as file:
            with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
                for item in items:
                    try:
                        image = read(item.source)
                    except Dropped as reason:
                        dropped.append({"key": item.key, "source": str(item.source), "reason": str(reason)})
                        continue
                    tar.write({"__key__": item.key, "jpg": image, "cls": str(item.identity).encode()})
            file.flush()
            os.fsync(file.fileno())
        # What was dropped must outlive a kill that comes after this shard is done.
        if dropped:
            write_atomic(path.with_suffix(".dropped"), json.dumps(dropped))
        temporary.replace(path)
    elif path.with_suffix(".dropped").exists():
        dropped = json.loads(path.with_suffix(".dropped").read_text())
    return (index_shard(path) if len(dropped) < len(items) else None), dropped


def index_shard(path: Path) -> Indexed:
    """Scan one shard. Raises `UserError` for a torn one, and for one that holds no sample."""
    samples = list(scan(path))
    if not samples:
        raise UserError(f"{path}: holds no sample (a .jpg with a .cls or .json of the same key)")
    with path.open("rb") as file:
        sizes = {jpeg_size(os.pread(file.fileno(), min(s.size, 4096), s.offset)) for s in samples}
    return Indexed(Shard(name=path.name, bytes=path.stat().st_size, samples=len(samples), sha256=file_sha256(path)), samples, sizes)


def finish(out: Path, parts: Sequence[Indexed], num_identities: int, template: str | None) -> Manifest:
    """Write the index and the manifest of the indexed shards, and remove what only a restart needed."""
    columns: dict[str, NDArray[np.integer]] = {
        "shard": np.repeat(np.arange(len(parts)), [len(p.samples) for p in parts]),
        "offset": np.array([s.offset for p in parts for s in p.samples]),
        "size": np.array([s.size for p in parts for s in p.samples]),
        "identity": np.array([s.identity for p in parts for s in p.samples]),
    }
    sizes = set().union(*(p.sizes for p in parts))
    image_px = next(iter(sizes)) if len(sizes) == 1 else None
    shards = [p.shard for p in parts]
    manifest = write_index(out, columns, shards, num_identities=num_identities, image_px=image_px, template=template)
    for leftover in out.glob("*.dropped"):
        leftover.unlink()
    return manifest


def index_folder(folder: Path, processes: int | None = None) -> Manifest:
    """Index shards that others wrote, in place. Labels must be integers 0..C-1; C is the highest + 1.

    Raises `UserError` for a folder without shards, a torn shard, and labels that leave more than half of 0..C-1 unused.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise UserError(f"{folder}: no .tar files in it")
    weights = [max(path.stat().st_size // 6000, 1) for path in shards]
    parts = run_parallel([partial(index_shard, path) for path in shards], weights, f"indexing {folder}", processes)
    used = {s.identity for p in parts for s in p.samples}
    if max(used) + 1 > 2 * len(used):
        raise UserError(f"{folder}: {len(used)} identities with labels up to {max(used)}; re-label them to 0..{len(used) - 1}")
    (folder / MANIFEST).unlink(missing_ok=True)
    return finish(folder, parts, max(used) + 1, None)
