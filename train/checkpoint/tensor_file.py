"""Files in the safetensors format, written from tensors and read into them a part at a time: beside
the tensors no more than a part is held, whatever their size.

The safetensors library makes one string of bytes of a whole file before it writes it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.commit import FileFacts
from manyfaces.train.checkpoint.progress import MOVED

PART_BYTES = 64 << 20
"""Bytes that are written or read at a time."""
SHARDING = "DCP_SHARDING_INFO"
"""Key of torch.distributed.checkpoint's metadata: where in the whole a file's tensor begins."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of dtypes."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    """The number of its first row in the whole tensor that it is a part of."""
    begin: int
    """Where in the file its bytes begin."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileFacts:
    """Write tensors of any device to a new file, which is on disk when this returns; the file's
    facts for COMMIT.json, of the bytes as they were in memory.

    Each part is hashed by another thread while it is written and flushed. Raises `OSError` with
    the path.
    """
    names = _file_order(tensors)
    header = file_header(tensors, metadata)
    digest, size = hashlib.sha256(), len(header) + sum(tensors[name].nbytes for name in names)
    try:
        with path.open("xb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            # A full disk is told at once, and no flush has to write down how the file has grown.
            os.posix_fallocate(file.fileno(), 0, size)
            for part in _parts(memoryview(header), [tensors[name] for name in names]):
                hashed = pool.submit(digest.update, part)
                _write_all(file.fileno(), part)
                # Bytes count once the disk has them; and a full one is told by the part.
                os.fdatasync(file.fileno())
                hashed.result()
                MOVED.add(len(part))
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return FileFacts(bytes=size, sha256=digest.hexdigest())


def file_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """What stands in a file before the bytes of these tensors, which may be of the device meta."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _file_order(tensors):
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """safetensors' own order: no tensor begins where its dtype may not."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _parts(head: memoryview, tensors: list[Tensor]) -> Iterator[memoryview]:
    """The bytes of a file in its order; small tensors are joined, as each part waits for the
    disk."""
    joined: list[memoryview] = [head]
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        step = PART_BYTES // tensor.element_size()
        for begin in range(0, len(flat), step):
            part = _bytes_of(flat[begin : begin + step].cpu().contiguous())
            if sum(map(len, joined)) + len(part) > PART_BYTES:
                yield _join(joined)
                joined = []
            joined.append(part)
    if joined:
        yield _join(joined)


def _join(parts: list[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _bytes_of(flat: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    # A single number counts as contiguous whatever its stride.
    return flat.as_strided((len(flat),), (1,)).view(torch.uint8).numpy().data


def _write_all(descriptor: int, part: memoryview) -> None:
    while len(part):
        part = part[os.write(descriptor, part) :]


def stored_tensors(path: Path) -> list[Stored]:
    """What a file holds, which may be one of torch.distributed.checkpoint's. Raises `UserError` for
    a file that is in another format."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        places = json.loads(header.pop("__metadata__", {}).get(SHARDING, "{}"))
        return [
            Stored(
                name,
                _DTYPES[facts["dtype"]],
                tuple(facts["shape"]),
                places[name]["saved_offsets"][0] if name in places else 0,
                8 + length + facts["data_offsets"][0],
            )
            for name, facts in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no safetensors file ({error!r})") from error


def read_rows(path: Path, stored: Stored, start: int, into_n: Tensor) -> None:
    """Fill `into_n` [n, ...] with the rows [start, start + n) of a file's tensor. Straight from the
    file where it lies contiguously on the CPU in the file's dtype, and else through a part.

    Raises `UserError` where rows have another shape, and where the file ends before them.
    """
    if tuple(into_n.shape[1:]) != stored.shape[1:]:
        raise UserError(
            f"{path}: {stored.name!r} has rows of shape {list(stored.shape[1:])}, expected "
            f"{list(into_n.shape[1:])}"
        )
    row_bytes = stored.dtype.itemsize * prod(stored.shape[1:])
    direct = into_n.device.type == "cpu" and into_n.dtype == stored.dtype and into_n.is_contiguous()
    step = max(1, PART_BYTES // max(row_bytes, 1))
    with path.open("rb", buffering=0) as file:
        for lo in range(0, len(into_n), step):
            part = into_n[lo : lo + step].detach()
            held = part if direct else torch.empty(part.shape, dtype=stored.dtype)
            offset = stored.begin + (start + lo) * row_bytes
            _read_all(file.fileno(), _bytes_of(held.view(-1)), offset, path)
            if not direct:
                part.copy_(held)


def _read_all(descriptor: int, into: memoryview, offset: int, path: Path) -> None:
    while len(into):
        count = os.preadv(descriptor, [into], offset)
        if count == 0:
            raise UserError(f"{path}: ends before its last row")
        MOVED.add(count)
        into, offset = into[count:], offset + count
