"""All tensors of a checkpoint, to compare two of them bit for bit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by `FILE:NAME`; of rows in files of several ranks, `FOLDER:NAME`
    with all rows in their order."""
    parts: dict[str, list[Tensor]] = {}
    for file in sorted(checkpoint.rglob("*.safetensors")):
        where = file.name if file.parent == checkpoint else file.parent.name
        for name, each in load_file(file).items():
            parts.setdefault(f"{where}:{name}", []).append(each)
    return {name: torch.cat(each) if each[0].dim() else each[0] for name, each in parts.items()}


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors of which two checkpoints, of any numbers of ranks, hold other bits, or
    which only one has."""
    mine, other = tensors(ours), tensors(theirs)
    assert mine, f"{ours} has no tensors"
    return [
        name
        for name in sorted(mine.keys() | other.keys())
        if name not in mine or name not in other or not _same_bits(mine[name], other[name])
    ]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and _bytes(one).equal(_bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    """NaN is not equal to itself, its bytes are."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
