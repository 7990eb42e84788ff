"""What an index of 260 million rows costs: time to open, private memory of a process, a batch's ids
warm and at any position, resume.

    python tests/bench/bench_scale.py FOLDER [--rows 260000000] [--processes 8] [--json]

Writes a made index to FOLDER once (20 bytes a row; fewer rows where the disk lacks the room, and
says so) and keeps it there. No shards are needed: nothing here reads an image. Memory is that of
fresh processes, as growth over what the interpreter and the imports take: Private_* of
/proc/self/smaps without the index's own mapping, whose pages are page cache that Linux counts as
private while only one process has touched them; they are told beside it. Pss is what remains when
pages are divided among those who map them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from manyfaces.configs import rng
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.index import COLUMNS
from manyfaces.data.dataset.manifest import INDEX, MANIFEST, Manifest, Shard
from manyfaces.data.orders.shuffle import Shuffle

SHARD_IMAGES, CHUNK, ROW_BYTES = 8192, 1 << 22, 20
BATCH, WINDOW_SHARDS = 1024, 16
COLD_POSITIONS, WARM_BATCHES = 100, 2000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=260_000_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.folder)), flush=True)  # noqa: T201
        sys.stdin.read()  # stays alive until all have been looked at
        return
    rows = write(arguments.folder, arguments.rows)
    drop_from_page_cache(arguments.folder / INDEX)
    results = {
        "rows": rows,
        "cold cache": run(arguments.folder, 1),
        "one process": run(arguments.folder, 1),
    }
    results[f"{arguments.processes} processes"] = run(arguments.folder, arguments.processes)
    if arguments.json:
        print(json.dumps(results))  # noqa: T201
        return
    table = Table(f"{rows:,} rows", *[name for name in results if name != "rows"], "at most")
    columns = [value for value in results.values() if isinstance(value, dict)]
    for name, unit, limit in (
        ("open", "ms", "1000"),
        ("private memory", "MB", "50"),
        ("pages of the index that it has touched", "MB", ""),
        ("growth of Pss, index and all", "MB", ""),
        ("ids of a batch, amortised", "ms", "1"),
        ("ids of a batch at any position, median", "ms", ""),
        ("ids of a batch at any position, worst", "ms", "20"),
        ("rows of a batch, amortised", "ms", ""),
        ("resume: open, order, ids and rows", "ms", "1000"),
    ):
        table.add_row(f"{name} ({unit})", *[f"{column[name]:,.2f}" for column in columns], limit)
    Console().print(table)
    Console().print(
        f"batches of {BATCH}, windows of {WINDOW_SHARDS} shards of {SHARD_IMAGES}; several "
        "processes: their worst, Pss their sum; "
        "they run at once and share the cores"
    )


def write(folder: Path, rows: int) -> int:
    """The made dataset, unless it is there; returns its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    room = (shutil.disk_usage(folder).free - (2 << 30)) // ROW_BYTES
    if (folder / MANIFEST).exists():
        return open_part(folder).manifest.num_images
    if room < rows:
        Console().print(f"{folder}: room for {room:,} rows only, not {rows:,}")
        rows = room
    # Zeros that nobody wrote take no memory; the columns are then filled where they lie in the
    # file.
    batch = pa.record_batch(
        {name: pa.array(np.zeros(rows, dtype.to_pandas_dtype())) for name, dtype in COLUMNS.items()}
    )
    with (
        pa.OSFile(str(folder / INDEX), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    del batch
    mapped = pa.memory_map(str(folder / INDEX))
    base = mapped.read_buffer(1).address
    mapped.seek(0)
    stored = pa.ipc.open_file(mapped).get_batch(0)
    for name, dtype in COLUMNS.items():
        at = stored.column(name).buffers()[1].address - base
        column = np.memmap(folder / INDEX, dtype.to_pandas_dtype(), "r+", at, (rows,))
        for start in range(0, rows, CHUNK):
            number = np.arange(start, min(start + CHUNK, rows), dtype=np.uint64)
            made = {
                "shard": number // SHARD_IMAGES,
                "offset": number % SHARD_IMAGES * 6144 + 512,
                "size": 3000 + rng.words(1, number) % 2000,
                "identity": rng.words(2, number) % 2_000_000,
            }[name]
            column[start : start + len(number)] = made
        column.flush()
    shards = [
        Shard(
            name=f"shard-{n:06d}.tar",
            bytes=6144 * SHARD_IMAGES,
            samples=min(SHARD_IMAGES, rows - n * SHARD_IMAGES),
            sha256=f"{n:064x}",
        )
        for n in range(-(-rows // SHARD_IMAGES))
    ]
    manifest = Manifest(
        num_images=rows,
        num_identities=2_000_000,
        image_px=(112, 112),
        index_sha256="0" * 64,
        shards=tuple(shards),
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=1))
    return rows


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(folder: Path, processes: int) -> dict[str, float]:
    """`measure` in fresh processes at once; each measure's worst."""
    command = [sys.executable, __file__, str(folder), "--worker"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    results = [
        json.loads(worker.stdout.readline()) for worker in workers if worker.stdout is not None
    ]
    pss = sum(memory(worker.pid, "Pss:") for worker in workers) - sum(
        result.pop("Pss before") for result in results
    )
    for worker in workers:
        worker.communicate("")
    return {
        **{name: max(result[name] for result in results) for name in results[0]},
        "growth of Pss, index and all": pss,
    }


def measure(folder: Path) -> dict[str, float]:
    """Milliseconds and megabytes of this process."""
    before, pss = memory("self", "Private_", but=INDEX), memory("self", "Pss:")
    began = time.perf_counter()
    dataset = open_part(folder)
    took = {"Pss before": pss, "open": milliseconds(began)}
    columns = (dataset.shard_N, dataset.offset_N, dataset.size_N, dataset.identity_N)
    positions = (
        np.random.default_rng(os.getpid())
        .integers(0, 10 * dataset.manifest.num_images, COLD_POSITIONS)
        .tolist()
    )

    order, cold = Shuffle(dataset, 0, WINDOW_SHARDS), []
    for position in positions:
        began = time.perf_counter()
        ids = order.ids(position, BATCH)
        cold.append(milliseconds(began))
    took["ids of a batch at any position, median"] = float(np.median(cold))
    took["ids of a batch at any position, worst"] = max(cold)
    in_order = in_rows = 0.0
    for batch in range(WARM_BATCHES):
        began = time.perf_counter()
        ids = order.ids(positions[0] + batch * BATCH, BATCH)
        in_order += milliseconds(began)
        began = time.perf_counter()
        [column[ids] for column in columns]
        in_rows += milliseconds(began)
    took["ids of a batch, amortised"], took["rows of a batch, amortised"] = (
        in_order / WARM_BATCHES,
        in_rows / WARM_BATCHES,
    )
    took["private memory"] = memory("self", "Private_", but=INDEX) - before
    took["pages of the index that it has touched"] = memory("self", "Rss:") - memory(
        "self", "Rss:", but=INDEX
    )

    began = time.perf_counter()
    resumed = open_part(folder)
    ids = Shuffle(resumed, 0, WINDOW_SHARDS).ids(positions[0], BATCH)
    [
        column[ids]
        for column in (resumed.shard_N, resumed.offset_N, resumed.size_N, resumed.identity_N)
    ]
    took["resume: open, order, ids and rows"] = milliseconds(began)
    return took


def milliseconds(began: float) -> float:
    return 1e3 * (time.perf_counter() - began)


def memory(process: int | str, field: str, but: str = "?") -> float:
    """Megabytes of a process's memory of one kind, without the mappings of files of one name."""
    total, counted = 0, True
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(
            ":"
        ):  # a mapping begins: addresses, flags, and the file that is mapped
            counted = not line.endswith(but)
        elif counted and line.startswith(field):
            total += int(line.split()[1])
    return total / 1e3


if __name__ == "__main__":
    main()
