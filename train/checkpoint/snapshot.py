"""What a checkpoint holds, and its copy in host memory that is written while training goes on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from manyfaces.configs.amounts import size
from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.copy_on_write import RowsCopy, can_be_copied
from manyfaces.train.checkpoint.layout import BACKBONE, BESIDE_BACKBONE, OPTIMIZER
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows, StatePart, Watch

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, as it stands between two steps."""

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

    def of_rank(self, rank: int) -> "Snapshot":
        """The same without what another rank writes."""
        parts = {name: _of_rank(part, rank) for name, part in self.objective.items()}
        return replace(self, objective=parts)


def _of_rank(part: StatePart, rank: int) -> StatePart:
    return part if isinstance(part, ShardedRows) or rank == 0 else HeldByRank0({})


class HostCopy:
    """Host memory that one snapshot after the other is copied to: to touch fresh pages takes many
    times as long as to copy."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, snapshot: Snapshot) -> Snapshot:
        """The same in this memory, which later steps do not change; what it held before is gone.
        Raises `UserError` where there is not enough memory."""
        return self.begin(snapshot)()

    def begin(self, snapshot: Snapshot) -> Callable[[], Snapshot]:
        """Begin to copy what the snapshot says now; the function that is returned copies what is
        left and gives the same as `take`, while steps may go on in another thread. It has to be
        called once before the next `begin`.

        Rows whose changes are told (`ShardedRows.watch`) are left to it, and to the steps that
        change them; all else is copied at once. Raises `UserError` where there is not enough
        memory: then nothing is begun.
        """
        copy = replace(
            snapshot,
            backbone=self._like(BACKBONE, snapshot.backbone),
            beside_backbone=self._like(BESIDE_BACKBONE, snapshot.beside_backbone),
            optimizer=self._like(OPTIMIZER, snapshot.optimizer),
            objective={
                name: self._part_like(name, part) for name, part in snapshot.objective.items()
            },
        )
        _copy(snapshot.backbone, copy.backbone)
        _copy(snapshot.beside_backbone, copy.beside_backbone)
        _copy(snapshot.optimizer, copy.optimizer)
        left = []
        for name, part in snapshot.objective.items():
            copies = copy.objective[name].tensors
            watch = part.watch if isinstance(part, ShardedRows) else None
            if watch is not None and all(can_be_copied(each) for each in part.tensors.values()):
                left.append(_begun(watch, part.tensors, copies))
            else:
                _copy(part.tensors, copies)

        def finish() -> Snapshot:
            with contextlib.ExitStack() as all_of_them:  # even where one fails
                for finish_rows in left:
                    all_of_them.callback(finish_rows)
            return copy

        return finish

    def _part_like(self, name: str, part: StatePart) -> StatePart:
        tensors = self._like(name, part.tensors)
        if isinstance(part, ShardedRows):
            return ShardedRows(tensors, part.num_rows)
        return HeldByRank0(tensors)

    def _like(self, file: str, tensors: Tensors) -> Tensors:
        """A tensor on the host for each, of the same shape and dtype."""
        return {name: self._room(f"{file}: {name}", each) for name, each in tensors.items()}

    def _room(self, key: str, tensor: Tensor) -> Tensor:
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            try:
                held = torch.empty(tensor.shape, dtype=tensor.dtype)
            except RuntimeError as error:
                raise UserError(
                    f"no host memory for the copy of {key} that a checkpoint is written from, "
                    f"{size(tensor.nbytes)}; set checkpoint.background=false, which needs "
                    "none, or take more workers"
                ) from error
            self._held[key] = held
        return held


def _copy(tensors: Tensors, copies: Tensors) -> None:
    for name, tensor in tensors.items():
        copies[name].copy_(tensor.detach())


def _begun(watch: Watch, rows: Tensors, copies: Tensors) -> Callable[[], None]:
    """Begin to copy rows while they change; the function that is returned copies what is left."""
    copy = RowsCopy(list(rows.values()), [copies[name] for name in rows])
    watch(copy.before_change)

    def finish() -> None:
        try:
            copy.copy_all()
        finally:
            watch(None)

    return finish
