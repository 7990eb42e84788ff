"""What a checkpoint looks like on disk, and when one exists.

    RUN/checkpoints/step-00001000/
        backbone.safetensors   weights and buffers of the backbone, float32
        network.safetensors    those of what an objective trains beside it, where it does
        optimizer.safetensors  moments of both by parameter name: independent of world size and ZeRO
                               stage
        head/                  class rows and their state, sharded by rank, in files of at most 256
                               MB that torch.distributed.checkpoint reads too; any world size reads
                               them
        NAME/, NAME.safetensors   what other objectives keep: sharded by rows, or held by rank 0
        identities.txt         line = name of the class id, where the dataset has names
        state.json             position, seed, configuration, dataset fingerprint, MLflow run
        COMMIT.json            sizes and SHA-256 of all of the above, written last

A folder without a valid COMMIT.json does not exist, and of another name than these it is no
checkpoint of the run; but for the names, nothing but safetensors and JSON is ever read.

    step-00001000.tmp-1a2b3c4d     is being written, or its writing was cut off
    step-00001000.bad-1a2b3c4d     was damaged when this step was written again
    step-00001000.aside-1a2b3c4d   stood there too, but may be of use to a person
"""

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from manyfaces.train.checkpoint.commit import (
    Condition,
    Fault,
    check_commit,
    committed,
    committed_file,
)
from manyfaces.train.checkpoint.edit_lock import is_being_written, sweep_edits

STATE, BACKBONE, BESIDE_BACKBONE, OPTIMIZER, HEAD = (
    "state.json",
    "backbone.safetensors",
    "network.safetensors",
    "optimizer.safetensors",
    "head",
)
FREE_SPACE_FACTOR = 1.05
"""Space that has to be free for each byte of a checkpoint."""
_UNWRITTEN = Fault(Condition.UNCOMMITTED, "not committed")
_NAME = re.compile(r"step-(\d{8,})(\.tmp-[0-9a-f]+)?")
_LEFTOVER = re.compile(r"step-\d{8,}\.(tmp|bad)-[0-9a-f]+")


@dataclass(frozen=True)
class Candidate:
    """A folder with the name of a checkpoint."""

    path: Path
    step: int
    fault: Fault | None


def folder_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def candidates(folder: Path) -> list[Candidate]:
    """Every folder that is named as a checkpoint of a run or as one that is being written, newest
    step first. Others, such as a person's copies under their own names, are not looked at."""
    found = []
    for path in folder.glob("step-*"):
        name = _NAME.fullmatch(path.name)
        if name is not None and path.is_dir():
            fault = _UNWRITTEN if name[2] else check_commit(path)
            found.append(Candidate(path, int(name[1]), fault))
    return sorted(found, key=lambda each: each.step, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is committed and of the right sizes, if there is one."""
    return next((each.path for each in candidates(folder) if each.fault is None), None)


def newest_step(folder: Path) -> int | None:
    """The step of that checkpoint; None without one."""
    return next((each.step for each in candidates(folder) if each.fault is None), None)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Weights and buffers of the backbone, float32, on the CPU. Raises `UserError` where their
    bytes are not as committed, as the functions below do."""
    return dict(load_file(committed_file(path, BACKBONE)))


def read_beside_backbone(path: Path) -> dict[str, Tensor]:
    """Weights and buffers of the rest of the network, float32, on the CPU."""
    if BESIDE_BACKBONE not in committed(path).files:
        return {}
    return dict(load_file(committed_file(path, BESIDE_BACKBONE)))


def read_optimizer(path: Path) -> dict[str, Tensor]:
    """The optimiser's moments by `KIND.PARAMETER`, and its `step`."""
    return dict(load_file(committed_file(path, OPTIMIZER)))


def sweep(folder: Path) -> None:
    """Remove what writes that were cut off have left, and what was found damaged; while none is
    going on but those to an `unfinished_folder`, which stay. A failed removal stops nothing."""
    sweep_edits(folder)
    for path in folder.glob("step-*"):
        if _LEFTOVER.fullmatch(path.name) and not is_being_written(path):
            _remove(path)


def make_way(final: Path, attempt: str) -> None:
    """Give what stands under the name of a checkpoint that is about to be committed another one:
    of the damaged it tells that it can go, of another format's or a person's that it is kept."""
    if not final.exists():
        return
    fault = check_commit(final)
    is_damaged = fault is not None and fault.condition is Condition.DAMAGED
    kind = "aside" if fault is not None and not is_damaged else "bad"
    final.rename(final.with_name(f"{final.name}.{kind}-{attempt}"))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path)
