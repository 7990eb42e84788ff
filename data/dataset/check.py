"""Whether every byte and every image of a dataset is whole: all of it is read, hashed and decoded,
one process a core."""

import functools
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import INDEX, Shard
from manyfaces.data.dataset.part import Part
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.parallel import run_parallel
from manyfaces.data.stderr import MISSING_DATA, with_stderr
from manyfaces.data.store.open_file import OpenFile

Fault = dict[str, str | int | None]

CHECK = "check.json"
_BATCH, _PIECE = 256, 4096


def check(dataset: Part, processes: int | None = None) -> list[Fault]:
    """Compare every byte with the manifest and decode every image, one process a core; returns what
    is broken, in index order.

    A fault has `shard`, `key` (None: the whole shard), `sample` and `reason`; all are written to
    `check.json` in the dataset. Broken is what training would leave out, and also a JPEG with data
    missing in the middle, which training takes with the rest gray. Raises `UserError` for a dataset
    whose shards are at a URL.
    """
    if dataset.remote is not None:
        raise UserError(
            f"{dataset.where}: its shards are at {dataset.remote.url}; check a local copy "
            "(training hashes each shard as it is fetched)"
        )
    pieces = _pieces(dataset)
    tasks = [partial(_check_piece, dataset.path, piece) for piece in pieces]
    weights = [piece.end - piece.begin for piece in pieces]
    parts = run_parallel(tasks, weights, f"checking {dataset.path}", processes)
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


class _Piece(NamedTuple):
    """Some neighbouring samples of one shard, which one task checks."""

    shard: int
    begin: int
    """The first sample, as a row of the index."""
    end: int
    """The row after the last sample."""
    is_first: bool
    """Whether it is the shard's first piece, whose task looks at the shard as a whole too."""


def _pieces(dataset: Part) -> list[_Piece]:
    """Divide the shards, so that one large shard keeps all cores busy."""
    pieces = []
    ends = np.cumsum(dataset.samples_per_shard).tolist()
    for number, (shard, end) in enumerate(zip(dataset.manifest.shards, ends, strict=True)):
        first = end - shard.samples
        pieces += [
            _Piece(number, begin, min(begin + _PIECE, end), begin == first)
            for begin in range(first, end, _PIECE)
        ]
    return pieces


def _fault(shard: str, key: str | None, sample: int | None, reason: str) -> Fault:
    return {"shard": shard, "key": key, "sample": sample, "reason": reason}


@functools.cache
def _tools(folder: Path) -> tuple[Part, Decoder]:
    """Open the dataset and a decoder once in each process: a manifest of many shards takes longer
    to read than a piece to check."""
    return open_part(folder), Decoder((112, 112), _BATCH, device=torch.device("cpu"))


def _check_piece(folder: Path, piece: _Piece) -> list[Fault]:
    """Check the samples of a piece, and with the shard's first piece its length and hash."""
    dataset, decode = _tools(folder)
    shard, path = dataset.manifest.shards[piece.shard], dataset.shard_path(piece.shard)
    if not path.is_file():
        missing = _fault(shard.name, None, None, f"missing ({shard.samples:,} images)")
        return [missing] if piece.is_first else []
    try:
        faults = _check_whole(path, shard) if piece.is_first else []
        file = OpenFile(path)
    except OSError as error:
        return [_fault(shard.name, None, None, f"cannot be read ({error.strerror})")]
    limit = dataset.manifest.num_identities
    # The bytes are not read through the store, which refuses a shard of another length: what is
    # left of it is looked at too.
    for start in range(piece.begin, piece.end, _BATCH):
        rows = slice(start, min(start + _BATCH, piece.end))
        blobs, unreadable = _read(file, dataset.offset_N[rows], dataset.size_N[rows])
        reasons = _broken(blobs, decode) | unreadable
        for row in np.flatnonzero(dataset.identity_N[rows] >= limit).tolist():
            reasons[row] = f"label {dataset.identity_N[start + row]} is not in [0, {limit})"
        for row, reason in sorted(reasons.items()):
            key = dataset.name(start + row).partition(":")[2]
            faults.append(_fault(shard.name, key, start + row, reason))
    return faults


def _read(
    file: OpenFile, offset_N: NDArray[np.uint64], size_N: NDArray[np.uint32]
) -> tuple[list[NDArray[np.uint8]], dict[int, str]]:
    """Read the blobs; returns them, fewer bytes than wanted where the file ends, and says why for
    each that the disk does not give."""
    blobs, unreadable = list[NDArray[np.uint8]](), dict[int, str]()
    for row, place in enumerate(zip(offset_N.tolist(), size_N.tolist(), strict=True)):
        body = b""
        try:
            body = file.read(*place)
        except OSError as error:
            unreadable[row] = f"cannot be read ({error.strerror})"
        blobs.append(np.frombuffer(body, np.uint8))
    return blobs, unreadable


def _check_whole(path: Path, shard: Shard) -> list[Fault]:
    """Compare a shard's length and hash with the manifest."""
    if (size := path.stat().st_size) != shard.bytes:
        return [_fault(shard.name, None, None, f"{size:,} bytes, expected {shard.bytes:,}")]
    if file_sha256(path) != shard.sha256:
        return [_fault(shard.name, None, None, "other bytes than when it was indexed")]
    return []


def _broken(blobs: list[NDArray[np.uint8]], decode: Decoder) -> dict[int, str]:
    """Say why, for each blob that is not a whole image."""
    (_, good), said = with_stderr(partial(decode, blobs))
    reasons = {int(row): "not a whole, decodable JPEG" for row in np.flatnonzero(~good)}
    if MISSING_DATA in said:
        for row in np.flatnonzero(good).tolist():
            _, said = with_stderr(partial(cv2.imdecode, blobs[row], cv2.IMREAD_COLOR))
            if MISSING_DATA in said:
                reasons[row] = "a JPEG with data missing: part of the image is gray"
    return reasons
