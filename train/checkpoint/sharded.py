"""State that is sharded by rows, on disk: safetensors files as torch.distributed.checkpoint writes
and reads them, so that any world size reads what any other wrote.

It is not asked to write and read them itself: it takes twice a file's size in memory on top.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.commit import FileFacts
from manyfaces.train.checkpoint.tensor_file import (
    SHARDING,
    read_rows,
    stored_tensors,
    write_tensors,
)

FILE_BYTES = 256 << 20
"""Most bytes of rows in one file; a single row may be more. Ranks divide a checkpoint's files among
them to compare their bytes."""


def write_rows(
    folder: Path, tensors: Mapping[str, Tensor], first: int, rank: int
) -> dict[str, FileFacts]:
    """Write this rank's rows, of which the first is number `first` of all; facts by the name of the
    file. Raises `OSError` with the path."""
    written = {}
    for file, rows in row_files(tensors, rank):
        parts = {name: tensors[name][lo:hi] for name, lo, hi in rows}
        firsts = {name: first + lo for name, lo, _ in rows}
        written[file] = write_file(folder / file, parts, firsts)
    return written


def row_files(
    tensors: Mapping[str, Tensor], rank: int
) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """The files that a rank writes these tensors to, of any device, and the rows in each: name of
    the tensor, first row and the one after the last."""
    files = list(_filled(tensors))
    return [
        (f"shard-{rank + 1:05d}-model-{number:05d}-of-{len(files):05d}.safetensors", rows)
        for number, rows in enumerate(files, 1)
    ]


def write_file(path: Path, parts: Mapping[str, Tensor], firsts: Mapping[str, int]) -> FileFacts:
    """Write one file of rows, whose first is number `firsts[name]` of all; its facts."""
    places = {name: [firsts[name]] + [0] * (part.dim() - 1) for name, part in parts.items()}
    return write_tensors(path, parts, sharding_metadata(places))


def sharding_metadata(places: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What torch.distributed.checkpoint wants in a file: where in the whole its tensors begin."""
    # In one order, so that the same rows are the same bytes whoever writes them.
    told = {name: {"saved_offsets": list(places[name])} for name in sorted(places)}
    return {SHARDING: json.dumps(told), "DCP_VERSION": "1.0", "format": "pt"}


def _filled(tensors: Mapping[str, Tensor]) -> Iterator[list[tuple[str, int, int]]]:
    """The rows of each file: name, first row and the one after the last; files as few as can be."""
    rows: list[tuple[str, int, int]] = []
    room = FILE_BYTES
    for name, tensor in tensors.items():
        row_bytes = max(1, tensor.element_size() * prod(tensor.shape[1:]))
        lo = 0
        while lo < len(tensor):
            if room < row_bytes and rows:
                yield rows
                rows, room = [], FILE_BYTES
            hi = min(len(tensor), lo + max(1, room // row_bytes))
            rows.append((name, lo, hi))
            room -= (hi - lo) * row_bytes
            lo = hi
            if lo < len(tensor):  # a file holds one part of a tensor
                yield rows
                rows, room = [], FILE_BYTES
    if rows:
        yield rows


def load_rows(files: Sequence[Path], tensors: Mapping[str, Tensor], first: int) -> None:
    """Fill this rank's rows, of which the first is number `first` of all, in place from the files
    of any world size, in any dtype. Raises `UserError` where these do not have them all."""
    missing = {name: len(tensor) for name, tensor in tensors.items()}
    for file in files:
        for stored in stored_tensors(file):
            if stored.name not in tensors or not stored.shape[0]:
                continue
            tensor = tensors[stored.name]
            lo = max(first, stored.first)
            hi = min(first + len(tensor), stored.first + stored.shape[0])
            if lo < hi:
                read_rows(file, stored, lo - stored.first, tensor[lo - first : hi - first])
                missing[stored.name] -= hi - lo
    for name, count in missing.items():
        if count:
            where = files[0].parent if files else "the checkpoint"
            raise UserError(
                f"{where}: has not all rows of {name!r}, {count:,} of {len(tensors[name]):,} are "
                "missing; use another checkpoint"
            )
