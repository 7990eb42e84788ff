"""Which checkpoint a run goes on from, and how its state comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed import ProcessGroup

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.split import class_share
from manyfaces.train.checkpoint.commit import (
    Condition,
    Fault,
    check_commit,
    committed,
    committed_file,
    corrupt_file,
)
from manyfaces.train.checkpoint.layout import Candidate, candidates
from manyfaces.train.checkpoint.progress import nothing, watched
from manyfaces.train.checkpoint.sharded import load_rows
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives.objective import ShardedRows, StatePart


@dataclass(frozen=True)
class Found:
    """A checkpoint all of whose bytes are as committed."""

    path: Path
    state: RunState
    why: str
    """What was found, what was chosen and why, for the person."""


def find(
    folder: Path,
    resume_from: str | None,
    group: ProcessGroup,
    beat: Callable[[], None] = nothing,
) -> Found | None:
    """The newest committed checkpoint whose bytes are all as committed, the same on every rank.
    `beat` is called while bytes are compared. Collective. Order of precedence:

    1. the newest step of this run's own folder that is committed and intact;
    2. else `resume_from`, which must be;
    3. else none: a fresh start.
    """
    passed_over: list[str] = []
    damaged: list[str] = []
    for candidate in _listed(folder, group):
        path = candidate.path
        fault = candidate.fault or _verify(path, group, beat)
        others = f"; passed over {', '.join(passed_over)}" if passed_over else ""
        if fault is None:
            why = f"newest committed checkpoint of this run{others}"
            return Found(path, on_all_ranks(partial(RunState.read, path), group), why)
        passed_over.append(f"{path.name} ({fault})")
        if fault.condition is not Condition.UNCOMMITTED:
            damaged.append(passed_over[-1])
    if damaged:
        raise UserError(
            f"{folder}: no checkpoint is intact: {', '.join(damaged)}; restore one, or move them "
            "away to start afresh"
        )
    if resume_from is None:
        return None
    path = Path(resume_from)
    if fault := on_all_ranks(partial(check_commit, path), group) or _verify(path, group, beat):
        raise UserError(f"run.resume_from {path}: {fault}; give a folder RUN/checkpoints/step-...")
    state = on_all_ranks(partial(RunState.read, path), group)
    return Found(path, state, "run.resume_from, as this run has none of its own")


def load_parts(
    path: Path,
    parts: Mapping[str, StatePart],
    group: ProcessGroup,
    beat: Callable[[], None] = nothing,
) -> None:
    """Fill the objective's state in place from a checkpoint of any world size, all of whose bytes
    `find` has compared. `beat` is called while they are read. Collective."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)

    def load() -> None:
        for name, part in parts.items():
            if isinstance(part, ShardedRows):
                listed = sorted(committed(path).files)
                files = [path / file for file in listed if file.startswith(f"{name}/")]
                load_rows(files, part.tensors, class_share(part.num_rows, rank, world_size)[0])
                continue
            stored = load_file(committed_file(path, f"{name}.safetensors"))
            for key, tensor in part.tensors.items():
                tensor.copy_(stored[key])

    watched(load, group, beat)


def _listed(folder: Path, group: ProcessGroup) -> list[Candidate]:
    """What rank 0 sees in the folder, on every rank."""
    is_first = dist.get_rank(group) == 0
    listing: list[Any] = [on_all_ranks(lambda: candidates(folder) if is_first else None, group)]
    dist.broadcast_object_list(listing, 0, group=group)
    return listing[0] or []


def _verify(path: Path, group: ProcessGroup, beat: Callable[[], None]) -> Fault | None:
    """What is wrong with a committed checkpoint's bytes, if anything; every rank reads its part,
    all get one verdict."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    fault = watched(partial(corrupt_file, path, rank, world_size), group, beat)
    faults: list[Fault | None] = [None] * world_size
    dist.all_gather_object(faults, fault, group=group)
    return next((told for told in faults if told), None)
