"""Is every byte and every image of a dataset whole: all of it read, hashed and decoded, one process
a core."""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import INDEX, Dataset, file_sha256, open_dataset, write_atomic
from manyfaces.data.dataset.write import run_parallel
from manyfaces.data.feed.decode import Decoder

T = TypeVar("T")
Fault = dict[str, str | int | None]

CHECK = "check.json"
MISSING_DATA = "premature end of data"  # libjpeg's words for what it then paints gray
_BATCH, _PIECE = 256, 4096


def check(dataset: Dataset, processes: int | None = None) -> list[Fault]:
    """Compare every byte with the manifest and decode every image, one process a core; returns what
    is broken, in index order.

    A fault has `shard`, `key` (None: the whole shard), `sample` and `reason`; all are written to
    `check.json` in the dataset. Broken is what training would leave out, and also a JPEG with data
    missing in the middle, which training takes with the rest gray.
    """
    if dataset.far is not None:
        raise UserError(
            f"{dataset.where}: its shards are at {dataset.far.url}; check a local copy (training "
            "hashes each shard as it is fetched)"
        )
    ends = np.cumsum(dataset.samples_per_shard).tolist()
    # Pieces of shards, so that one large shard keeps all cores busy; a shard's first piece also
    # hashes it.
    pieces = [
        (number, begin, min(begin + _PIECE, end))
        for number, (shard, end) in enumerate(zip(dataset.manifest.shards, ends, strict=True))
        for begin in range(end - shard.samples, end, _PIECE)
    ]
    tasks = [
        partial(
            _check_piece,
            dataset.path,
            number,
            begin,
            end,
            begin == ends[number] - dataset.manifest.shards[number].samples,
        )
        for number, begin, end in pieces
    ]
    parts = run_parallel(
        tasks, [end - begin for _, begin, end in pieces], f"checking {dataset.path}", processes
    )
    faults = [fault for part in parts for fault in part]
    if file_sha256(dataset.path / INDEX) != dataset.manifest.index_sha256:
        faults.insert(0, _fault(INDEX, None, None, "other bytes than when it was written"))
    report = {
        "fingerprint": dataset.manifest.fingerprint,
        "images": dataset.manifest.num_images,
        "broken": faults,
    }
    write_atomic(dataset.path / CHECK, json.dumps(report, indent=1) + "\n")
    return faults


def _fault(shard: str, key: str | None, sample: int | None, reason: str) -> Fault:
    return {"shard": shard, "key": key, "sample": sample, "reason": reason}


@functools.cache
def _tools(folder: Path) -> tuple[Dataset, Decoder]:
    """Of this process: a manifest of many shards takes longer to read than a piece."""
    return open_dataset(folder), Decoder(112, _BATCH + 1, device=torch.device("cpu"))


def _check_piece(folder: Path, number: int, begin: int, end: int, first: bool) -> list[Fault]:
    dataset, decode = _tools(folder)
    shard, path, limit = (
        dataset.manifest.shards[number],
        dataset.shard_path(number),
        dataset.manifest.num_identities,
    )
    if not path.is_file():
        return (
            [_fault(shard.name, None, None, f"missing ({shard.samples:,} images)")] if first else []
        )
    faults: list[Fault] = []
    if (size := path.stat().st_size) != shard.bytes:
        faults += (
            [_fault(shard.name, None, None, f"{size:,} bytes, expected {shard.bytes:,}")]
            if first
            else []
        )
    elif first and file_sha256(path) != shard.sha256:
        faults.append(_fault(shard.name, None, None, "other bytes than when it was indexed"))
    # Not through the store, which refuses a shard of another length: what is left of it is looked
    # at too.
    body = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    for start in range(begin, end, _BATCH):
        rows = slice(start, min(start + _BATCH, end))
        places = zip(dataset.offset_N[rows].tolist(), dataset.size_N[rows].tolist(), strict=True)
        reasons = _broken([np.asarray(body[at : at + length]) for at, length in places], decode)
        for row in np.flatnonzero(dataset.identity_N[rows] >= limit).tolist():
            reasons[row] = f"label {dataset.identity_N[start + row]} is not in [0, {limit})"
        for row, reason in sorted(reasons.items()):
            faults.append(
                _fault(shard.name, dataset.name(start + row).partition(":")[2], start + row, reason)
            )
    return faults


def _broken(blobs: list[NDArray[np.uint8]], decode: Decoder) -> dict[int, str]:
    """Why, of each blob that is not a whole image."""
    # One image that is certainly whole: without any, the decoder would take many broken ones for a
    # fault of its own.
    sound = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].reshape(-1)
    (_, good), said = _with_stderr(lambda: decode([*blobs, sound]))
    reasons = {int(row): "not a whole, decodable JPEG" for row in np.flatnonzero(~good)}
    if MISSING_DATA in said:
        for row in np.flatnonzero(good[:-1]).tolist():
            if (
                MISSING_DATA
                in _with_stderr(lambda row=row: cv2.imdecode(blobs[row], cv2.IMREAD_COLOR))[1]  # type: ignore[misc]
            ):
                reasons[row] = "a JPEG with data missing: part of the image is gray"
    return reasons


def _with_stderr(work: Callable[[], T]) -> tuple[T, str]:
    """The result, and what C libraries wrote to file descriptor 2: libjpeg tells of missing data
    nowhere else."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            result = work()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, file.read().decode(errors="replace")
