"""Checkpoints are written in the background to a temporary folder and committed by one rename: they
exist whole or not at all."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.checkpoint.commit import Files, commit_folder, digest, written_files
from manyfaces.train.checkpoint.finite import refuse_not_finite
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    FREE_SPACE_FACTOR,
    OPTIMIZER,
    STATE,
    folder_name,
    make_way,
    retain,
    sweep,
)
from manyfaces.train.checkpoint.sharded import save_rows
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows, StatePart

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, already copied."""

    state: RunState
    backbone: Tensors
    """Weights and buffers of the backbone, on rank 0 only."""
    optimizer: Tensors
    """Moments, on rank 0 only."""
    objective: Mapping[str, StatePart] = field(default_factory=dict)
    """State of the objective, this rank's part."""
    identities: Path | None = None
    """The file of the classes' names, copied as it is."""
    beside_backbone: Tensors = field(default_factory=dict)
    """Weights and buffers of the rest of the network, on rank 0 only."""

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of this rank's part, with the name of its file and its own."""
        files: dict[str, Tensors] = {
            BACKBONE: self.backbone,
            BESIDE_BACKBONE: self.beside_backbone,
            OPTIMIZER: self.optimizer,
            **{name: part.tensors for name, part in self.objective.items()},
        }
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                yield f"{file}: {name}", tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of this rank's part."""
        return sum(tensor.nbytes for _, tensor in self.tensors)


class Checkpointer:
    """Writes one checkpoint at a time in a background thread of every rank; its collectives use a
    gloo group of their own. Only who holds the run's lock may save.

    All methods are collective. `save` and `wait` raise `UserError`, on every rank alike, if the
    write before failed.
    """

    def __init__(self, folder: Path, keep: int, on_commit: Callable[[int, Path], None]) -> None:
        self.folder, self.keep, self.on_commit = folder, keep, on_commit
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")
        attempt = [os.urandom(4).hex()]
        dist.broadcast_object_list(attempt, 0, group=self.group)
        self.attempt = attempt[0]
        self._trusted: list[Path] = []
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    @property
    def last_good(self) -> Path | None:
        """The last checkpoint that is known to be good to the byte: this session wrote it, or began
        with it."""
        return self._trusted[-1] if self._trusted else None

    def began_with(self, checkpoint: Path) -> None:
        """Tell which checkpoint the session resumes from, all of whose bytes are as committed."""
        self._trusted.append(checkpoint)

    def save(self, snapshot: Snapshot) -> None:
        """Start writing. Waits for the write before."""
        self.wait()
        needed = torch.tensor([snapshot.num_bytes])
        dist.all_reduce(needed, group=self.group)
        free = torch.tensor([on_all_ranks(self._free_bytes, self.group)])
        dist.all_reduce(free, dist.ReduceOp.MIN, group=self.group)
        if free.item() < needed.item() * FREE_SPACE_FACTOR:
            raise UserError(
                f"{self.folder}: a checkpoint needs {needed.item() / 1e6:,.1f} MB, "
                f"{free.item() / 1e6:,.1f} MB free; {self._resume_line()}"
            )
        self._thread = threading.Thread(
            target=self._write, args=(snapshot,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until what is being written is committed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise UserError(f"{self.folder}: {self._error}")

    def _free_bytes(self) -> int:
        """The free space, once what writes that were cut off had taken of it is given back."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            sweep(self.folder)
        return shutil.disk_usage(self.folder).free

    def _resume_line(self) -> str:
        good = self.last_good
        return (
            f"the last good checkpoint is {good.name if good else 'none'}; free some space and run "
            "the same command to resume"
        )

    def _write(self, snapshot: Snapshot) -> None:
        step = snapshot.state.step
        final = self.folder / folder_name(step)
        temporary = self.folder / f"{final.name}.tmp-{self.attempt}"
        try:
            on_all_ranks(partial(refuse_not_finite, snapshot.tensors), self.group)
        except UserError as error:
            good = self.last_good or "none"
            self._error = (
                f"step {step}: {error}; no checkpoint of it is kept; the last good one is {good}; "
                "lower train.optimizer.lr or look at the samples, and start from it under a new "
                "run.name with run.resume_from"
            )
            return
        told = f"checkpoint of step {step} could not be written"
        try:
            on_all_ranks(partial(self._write_local, temporary, snapshot), self.group)
            for name, part in snapshot.objective.items():
                if isinstance(part, ShardedRows):
                    save_rows(temporary / name, part.tensors, part.num_rows, self.group)
            files = self._digests(temporary)
            on_all_ranks(partial(self._commit, temporary, final, step, files), self.group)
            self._trusted.append(final)
            told = f"checkpoint of step {step} is committed, but what comes after it failed"
            on_all_ranks(partial(self._after_commit, step, final), self.group)
        except Exception as error:
            self._error = f"{told}: {error}; {self._resume_line()}"

    def _write_local(self, folder: Path, snapshot: Snapshot) -> None:
        """What this rank writes alone."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in snapshot.objective.items():
            if isinstance(part, ShardedRows):
                (folder / name).mkdir(exist_ok=True)
            elif self.rank == 0:
                save_file(dict(part.tensors), folder / f"{name}.safetensors")
        if self.rank == 0:
            save_file(dict(snapshot.backbone), folder / BACKBONE)
            if snapshot.beside_backbone:
                save_file(dict(snapshot.beside_backbone), folder / BESIDE_BACKBONE)
            save_file(dict(snapshot.optimizer), folder / OPTIMIZER)
            write_atomic(folder / STATE, snapshot.state.to_json())
            if snapshot.identities is not None:
                shutil.copyfile(snapshot.identities, folder / IDENTITIES)

    def _digests(self, temporary: Path) -> Files:
        """Facts of all files, each rank having read its part of them."""
        # Rank 0 lists for all: on a network file system another node may not see every file yet.
        is_first = self.rank == 0
        names: list[Any] = [
            on_all_ranks(lambda: written_files(temporary) if is_first else None, self.group)
        ]
        dist.broadcast_object_list(names, 0, group=self.group)
        mine = names[0][self.rank :: self.world_size]
        digests: list[Any] = [None] * self.world_size
        told = on_all_ranks(partial(digest, temporary, mine), self.group)
        dist.all_gather_object(digests, told, group=self.group)
        return {name: facts for part in digests for name, facts in part.items()}

    def _commit(self, temporary: Path, final: Path, step: int, files: Files) -> None:
        if self.rank == 0:
            make_way(final, self.attempt)
            commit_folder(temporary, final, step, self.world_size, files)

    def _after_commit(self, step: int, final: Path) -> None:
        if self.rank == 0:
            self.on_commit(step, final)
            retain(self.folder, self.keep, self._trusted)


def copied(tensors: Tensors) -> Tensors:
    """The same on the host, which later steps do not change, as safetensors writes it."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def copied_part(part: StatePart, rank: int) -> StatePart:
    """What this rank writes of a part, copied."""
    if isinstance(part, ShardedRows):
        return ShardedRows(copied(part.tensors), part.num_rows)
    return HeldByRank0(copied(part.tensors) if rank == 0 else {})
