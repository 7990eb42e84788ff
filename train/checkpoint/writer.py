"""Checkpoints are written in the background to a temporary folder and committed by one rename: they
exist whole or not at all."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
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
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    FREE_SPACE_FACTOR,
    OPTIMIZER,
    STATE,
    commit,
    digest,
    newest,
    retain,
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
    def num_bytes(self) -> int:
        """Bytes of this rank's part."""
        objective = [part.tensors for part in self.objective.values()]
        parts = [self.backbone, self.beside_backbone, self.optimizer, *objective]
        return sum(tensor.nbytes for part in parts for tensor in part.values())


class Checkpointer:
    """Writes one checkpoint at a time in a background thread of every rank; its collectives use a
    gloo group of their own.

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
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start writing. Waits for the write before."""
        self.wait()
        needed = torch.tensor([snapshot.num_bytes])
        dist.all_reduce(needed, group=self.group)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = torch.tensor([shutil.disk_usage(self.folder).free])
        dist.all_reduce(free, dist.ReduceOp.MIN, group=self.group)
        if free.item() < needed.item() * FREE_SPACE_FACTOR:
            raise UserError(
                f"{self.folder}: a checkpoint needs {needed.item() / 1e6:,.1f} MB, "
                f"{free.item() / 1e6:,.1f} MB free; {self._last_good()}"
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
            raise UserError(f"{self.folder}: {self._error}; {self._last_good()}")

    def _last_good(self) -> str:
        good = newest(self.folder)
        return (
            f"the last good checkpoint is {good.name if good else 'none'}; free some space and run "
            "the same command to resume"
        )

    def _write(self, snapshot: Snapshot) -> None:
        step = snapshot.state.step
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{final.name}.tmp-{self.attempt}"
        try:
            on_all_ranks(partial(self._write_local, temporary, snapshot), self.group)
            for name, part in snapshot.objective.items():
                if isinstance(part, ShardedRows):
                    save_rows(temporary / name, part.tensors, part.num_rows, self.group)
            files = self._digests(temporary)
            on_all_ranks(partial(self._commit, temporary, final, step, files), self.group)
            if self.rank == 0:
                self.on_commit(step, final)
                retain(self.folder, self.keep)
        except Exception as error:
            self._error = f"checkpoint of step {step} could not be written: {error}"

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

    def _digests(self, temporary: Path) -> dict[str, Any]:
        """Facts of all files, each rank having read its part of them."""
        # Rank 0 lists for all: on a network file system another node may not see every file yet.
        names: list[Any] = [None]
        if self.rank == 0:
            files = [path for path in temporary.rglob("*") if path.is_file()]
            names = [sorted(path.relative_to(temporary) for path in files)]
        dist.broadcast_object_list(names, 0, group=self.group)
        mine = names[0][self.rank :: self.world_size]
        digests: list[Any] = [None] * self.world_size
        told = on_all_ranks(partial(digest, temporary, mine), self.group)
        dist.all_gather_object(digests, told, group=self.group)
        return {name: facts for part in digests for name, facts in part.items()}

    def _commit(self, temporary: Path, final: Path, step: int, files: dict[str, Any]) -> None:
        if self.rank != 0:
            return
        # A name is never reused: a folder of this step that stands here is not committed, or was
        # found corrupt.
        if final.exists():
            final.rename(self.folder / f"{final.name}.bad-{self.attempt}")
        commit(temporary, final, step, self.world_size, files)


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
