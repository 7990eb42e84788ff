"""What a checkpoint holds, and its copy in host memory that is written while training goes on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.layout import BACKBONE, BESIDE_BACKBONE, OPTIMIZER
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows, StatePart

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
        return replace(
            snapshot,
            backbone=self._copied(BACKBONE, snapshot.backbone),
            beside_backbone=self._copied(BESIDE_BACKBONE, snapshot.beside_backbone),
            optimizer=self._copied(OPTIMIZER, snapshot.optimizer),
            objective={
                name: replace(part, tensors=self._copied(name, part.tensors))
                for name, part in snapshot.objective.items()
            },
        )

    def _copied(self, file: str, tensors: Tensors) -> Tensors:
        return {name: self._copy(f"{file}: {name}", each) for name, each in tensors.items()}

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            try:
                held = torch.empty(tensor.shape, dtype=tensor.dtype)
            except RuntimeError as error:
                raise UserError(
                    f"no host memory for the copy of {key} that a checkpoint is written from, "
                    f"{tensor.nbytes / 1e9:,.1f} GB; set checkpoint.background=false, which needs "
                    "none, or take more workers"
                ) from error
            self._held[key] = held
        return held.copy_(tensor.detach())
