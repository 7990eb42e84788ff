"""The class centres of a checkpoint as one file, for programs that know nothing of its layout.

Shapes: C classes, n some of them, K sub-centres, D the embedding.
"""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.checkpoint.commit import committed, committed_file
from manyfaces.train.checkpoint.head_files import HeadFiles, SubCentres, refuse_without_head
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.tensor_file import file_header
from manyfaces.train.evaluation.exported import refuse_file

ENDINGS = (".safetensors", ".npy")
"""What the name of a file of centres may end in."""
NAME = "weight"
"""What the centres are called in a safetensors file, as InsightFace's PartialFC calls them."""
_PART_BYTES = 64 << 20
"""Bytes of centres that are held at a time."""


def names_file(file: Path) -> Path:
    """The file of the classes' names beside a file of centres."""
    return file.with_name(f"{file.stem}.{IDENTITIES}")


def write_centres(
    checkpoint: Path,
    file: Path,
    *,
    unit: bool,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, ...]:
    """Write the centres of a committed checkpoint, float32 [C, D], or [C, K, D] where a class has K
    sub-centres, and their names beside them where the dataset has any; the shape is returned.

    They are in the order of the class ids, which is that of the lines of the names. With `unit`
    each has length 1, but for a class that was forgotten: all it has is zero. No more than a part
    is held at a time; `count(done, total)` counts classes. Raises `UserError` for a file that is
    there or cannot be written, and for a run without class centres.
    """
    refuse_file(file, ENDINGS)
    names = names_file(file)
    if names.exists():
        raise UserError(f"{names}: exists; give another name or remove it")
    state = RunState.read(checkpoint)
    refuse_without_head(state.config, checkpoint)
    centres = SubCentres(HeadFiles(checkpoint, state.num_classes))
    shape = (state.num_classes, *([len(centres)] if len(centres) > 1 else []), centres.dim)
    unfinished = [path.with_name(f".{path.name}.tmp") for path in (names, file)]
    try:
        has_names = IDENTITIES in committed(checkpoint).files
        if has_names:
            shutil.copyfile(committed_file(checkpoint, IDENTITIES), unfinished[0])
        _write(unfinished[1], _header(file, shape), _parts(centres, state.num_classes, unit, count))
        if has_names:
            unfinished[0].rename(names)
        unfinished[1].rename(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error})") from error
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)
    return shape


def _header(file: Path, shape: tuple[int, ...]) -> bytes:
    """What stands in the file before the numbers."""
    if file.suffix == ".safetensors":
        like = torch.empty(shape, dtype=torch.float32, device="meta")
        return file_header({NAME: like}, {"format": "pt"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def _parts(
    centres: SubCentres, num_classes: int, unit: bool, count: Callable[[int, int], None]
) -> Iterator[Tensor]:
    """The centres, [n, K, D] at a time."""
    step = max(1, _PART_BYTES // (4 * len(centres) * centres.dim))
    for lo in range(0, num_classes, step):
        rows_nKD = centres.stored(np.arange(lo, min(lo + step, num_classes)))
        yield F.normalize(rows_nKD, dim=2) if unit else rows_nKD
        count(lo + len(rows_nKD), num_classes)


def _write(path: Path, header: bytes, parts: Iterator[Tensor]) -> None:
    with path.open("wb") as file:
        file.write(header)
        for part in parts:
            file.write(part.contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())
