"""Which samples a run has trained on, where `tracking.log_samples` asks for it: a file for each
rank in the run's folder, a line for each step that has trained on its batch.

    {"step": 7, "position": 96, "ids": [311, 5, ...], "left_out": [20]}

Ids count the samples of the dataset from 0. Those in `left_out` stand in the batch and not in the
loss, as their image is broken or they were forgotten. A step whose whole batch a run leaves out has
no line. A line that a full disk has torn stays, and is no JSON.
"""

import contextlib
import json
import math
import os
from pathlib import Path

from manyfaces.data.feed.loader import IGNORED, Batch

_BLOCK_BYTES = 1 << 20


class SampleLog:
    """What one rank writes. A full disk costs lines, and ends no training: the numbers of the steps
    tell which are missing."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"rank-{rank}.jsonl"

    def made(self, step: int, batch: Batch) -> None:
        """The run has made this step with this rank's share of the batch."""
        used_N = (batch.labels_N != IGNORED).cpu().numpy()
        ids, left_out = batch.ids_N[used_N].tolist(), batch.ids_N[~used_N].tolist()
        row = {"step": step, "position": batch.position, "ids": ids, "left_out": left_out}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(exist_ok=True)
            _append(self.path, json.dumps(row))


class NoSampleLog(SampleLog):
    """The log of a run that keeps none."""

    def __init__(self) -> None:
        pass

    def made(self, step: int, batch: Batch) -> None:
        pass


def open_log(folder: Path, rank: int, step: int, is_wanted: bool) -> SampleLog:
    """What this rank writes down after `step`. The lines of steps that are made again are removed
    before any rank makes one: call it on all ranks before a collective."""
    if rank == 0:
        rewind(folder, step)
    return SampleLog(folder, rank) if is_wanted else NoSampleLog()


def rewind(folder: Path, step: int) -> None:
    """Remove what all ranks have written of steps after `step`, which a resumed run makes again,
    and torn lines at the end."""
    for path in folder.glob("rank-*.jsonl"):
        with path.open("rb+") as file:
            file.truncate(_end(file.fileno(), step))


def _append(path: Path, line: str) -> None:
    with path.open("ab+") as file:
        # A full disk or a kill may have torn the last line, which must not swallow this one.
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(f"{line}\n".encode())


def _end(descriptor: int, step: int) -> int:
    """Where the last whole line of a step up to this one ends. It is looked for from the file's
    end, as the file may be large and what is cut is not."""
    size, take = os.fstat(descriptor).st_size, _BLOCK_BYTES
    while True:
        start = max(size - take, 0)
        block = os.pread(descriptor, size - start, start)
        lines = block.splitlines(keepends=True)
        end = size
        for number in range(len(lines) - 1, -1 if start == 0 else 0, -1):
            if lines[number].endswith(b"\n") and _step(lines[number]) <= step:
                return end
            end -= len(lines[number])
        if start == 0:
            return 0
        take *= 2


def _step(line: bytes) -> float:
    """The step of a line; later than any other where a full disk or a kill has torn it."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return int(json.loads(line)["step"])
    return math.inf
