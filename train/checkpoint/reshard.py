"""A checkpoint rewritten as another number of workers would have written it: what is sharded by
rows stands in other files, all else is copied."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.split import class_share
from manyfaces.train.checkpoint.commit import (
    Files,
    commit_folder,
    committed,
    committed_files,
    digest,
)
from manyfaces.train.checkpoint.edit_lock import unfinished_folder
from manyfaces.train.checkpoint.new_folder import make_room, refuse_out
from manyfaces.train.checkpoint.sharded import row_files, write_file
from manyfaces.train.checkpoint.tensor_file import Stored, read_rows, stored_tensors
from manyfaces.train.folder import CHECKPOINTS

Count = Callable[[int], None]
"""Is told how many more bytes were read."""


@dataclass(frozen=True)
class _Piece:
    """Rows of one tensor in a file of the source."""

    file: Path
    stored: Stored

    @property
    def end(self) -> int:
        """The number of the row after its last one in the whole tensor."""
        return self.stored.first + self.stored.shape[0]


_Pieces = dict[str, list[_Piece]]
"""By the name of the tensor, in the order of rows."""


def default_out(checkpoint: Path, workers: int) -> Path:
    """Where a checkpoint of a run is resharded to where nothing else is said: beside the run."""
    run = checkpoint.absolute().parent.parent
    return run.with_name(f"{run.name}-for-{workers}") / CHECKPOINTS / checkpoint.name


def num_bytes(checkpoint: Path) -> int:
    """How many bytes `reshard` reads: all are compared, and all read once more."""
    return 2 * sum(facts.bytes for facts in committed(checkpoint).files.values())


def reshard(checkpoint: Path, out: Path, workers: int, count: Count = lambda more: None) -> None:
    """Write the committed checkpoint to `out` as `workers` ranks would have written it, whole or
    not at all. Rows keep their bits. No more than one file of rows is held at a time.

    Raises `UserError` where `out` exists or is of a run, the disk is too full, or a byte of the
    source is not as it was committed.
    """
    refuse_out(out)
    commit = committed(checkpoint)
    parts = sorted({name.partition("/")[0] for name in commit.files if "/" in name})
    make_room(out, sum(facts.bytes for facts in commit.files.values()))
    for file in committed_files(checkpoint, sorted(commit.files)):
        count(file.stat().st_size)
    with unfinished_folder(out) as temporary:
        copied = [name for name in commit.files if "/" not in name]
        for name in copied:
            shutil.copyfile(checkpoint / name, temporary / name)
            count(commit.files[name].bytes)
        files = digest(temporary, copied)
        for part in parts:
            listed = [checkpoint / name for name in commit.files if name.startswith(f"{part}/")]
            files |= _reshard_part(listed, temporary / part, workers, count)
        commit_folder(temporary, out, commit.step, workers, files)


def _reshard_part(listed: list[Path], folder: Path, workers: int, count: Count) -> Files:
    """Write one part that is sharded by rows to a new folder; facts of its files."""
    folder.mkdir()
    pieces = _pieces(listed)
    (num_rows,) = {found[-1].end for found in pieces.values()}
    files: Files = {}
    for rank in range(workers):
        first, end = class_share(num_rows, rank, workers)
        # They have shapes and no bytes.
        empty = {
            name: torch.empty(
                (end - first, *found[0].stored.shape[1:]),
                dtype=found[0].stored.dtype,
                device="meta",
            )
            for name, found in pieces.items()
        }
        for name, rows in row_files(empty, rank):
            tensors = {
                tensor: _read(pieces[tensor], first + lo, empty[tensor][lo:hi])
                for tensor, lo, hi in rows
            }
            firsts = {tensor: first + lo for tensor, lo, _ in rows}
            files[f"{folder.name}/{name}"] = write_file(folder / name, tensors, firsts)
            count(sum(tensor.nbytes for tensor in tensors.values()))
    return files


def _pieces(listed: list[Path]) -> _Pieces:
    """Where the rows of each tensor stand. Raises `UserError` where some are missing, are there
    twice, or are of another number than those of the others."""
    pieces: _Pieces = defaultdict(list)
    for file in sorted(listed):
        for stored in stored_tensors(file):
            if stored.shape[0]:
                pieces[stored.name].append(_Piece(file, stored))
    for found in pieces.values():
        found.sort(key=lambda piece: piece.stored.first)
    for name, found in pieces.items():
        ends = [0, *(piece.end for piece in found)]
        whole = next(iter(pieces.values()))[-1].end
        if ends[-1] != whole or ends[:-1] != [piece.stored.first for piece in found]:
            raise UserError(
                f"{found[0].file.parent}: {name!r} does not have the {whole:,} rows of the others "
                "once each; use another checkpoint"
            )
    return pieces


def _read(found: list[_Piece], first: int, like: Tensor) -> Tensor:
    """A tensor of the shape of `like`, with the rows of the whole from `first` on."""
    rows = torch.empty(like.shape, dtype=like.dtype)
    for piece in found:
        lo, hi = max(first, piece.stored.first), min(first + len(rows), piece.end)
        if lo < hi:
            into = rows[lo - first : hi - first]
            read_rows(piece.file, piece.stored, lo - piece.stored.first, into)
    return rows
