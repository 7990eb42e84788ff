"""The tensors of a checkpoint's `head/` in one process: rows by class, whatever world size wrote
them, and new files a part at a time.

Shapes: C classes, n some of them, D the embedding.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from manyfaces.configs.schema import UserError
from manyfaces.models.head.rows import SHORTEST
from manyfaces.train.checkpoint.checkpoint import HEAD

Ints = NDArray[np.int64]
PART_BYTES = 256 << 20
"""Of a file that is written; some four times this is held at a time."""
BARRED = 8
"""Files from which on a bar is shown."""
_SHARDING = (
    "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's: where in the whole a file's tensor begins
)


class HeadFiles:
    """A committed checkpoint's head, memory-mapped: what is read is the rows that are asked for."""

    def __init__(self, checkpoint: Path, num_classes: int) -> None:
        parts: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for file in (checkpoint / HEAD).glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                places = json.loads((opened.metadata() or {}).get(_SHARDING, "{}"))
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    first = places[name]["saved_offsets"][0] if name in places else 0
                    if len(tensor := opened.get_tensor(name)):
                        parts[name].append((first, tensor))
        self.num_classes = num_classes
        self._parts = {
            name: sorted(found, key=lambda part: part[0]) for name, found in sorted(parts.items())
        }
        for name, found in self._parts.items():
            ends = np.cumsum([0, *(len(tensor) for _, tensor in found)]).tolist()
            if ends[-1] != num_classes or ends[:-1] != [first for first, _ in found]:
                raise UserError(
                    f"{checkpoint / HEAD}: {name!r} is not of {num_classes:,} classes, as "
                    "state.json says; use another checkpoint"
                )

    @property
    def like(self) -> dict[str, Tensor]:
        """No row of each tensor, [0, ...]: names, dtypes and shapes."""
        return {name: found[0][1][:0] for name, found in self._parts.items()}

    def take(self, name: str, classes: Ints) -> Tensor:
        """Rows of the tensor by class number, a copy."""
        found = self._parts[name]
        taken = found[0][1].new_empty(len(classes), *found[0][1].shape[1:])
        part_n = np.searchsorted([first for first, _ in found], classes, "right") - 1
        for number in np.unique(part_n).tolist():
            here = np.flatnonzero(part_n == number)
            here = here[classes[here].argsort()]  # through the file in its order
            first, tensor = found[number]
            taken[torch.from_numpy(here)] = tensor.index_select(
                0, torch.from_numpy(classes[here] - first)
            )
        return taken


def lengths(head: HeadFiles) -> Tensor:
    """Of each class's row, float32 [C]; 0 for one that was forgotten."""
    part = max(1, PART_BYTES // (4 * head.like["rows"].shape[1]))
    parts = (
        np.arange(lo, min(lo + part, head.num_classes)) for lo in range(0, head.num_classes, part)
    )
    return torch.cat(
        [
            torch.linalg.vector_norm(head.take("rows", classes_n).float(), dim=1)
            for classes_n in parts
        ]
    )


class SubCentres:
    """The class centres of a checkpoint's head: its planes `rows`, `rows.1` ..., one a
    sub-centre."""

    def __init__(self, head: HeadFiles) -> None:
        self.head = head
        self.planes = sorted(
            (name for name in head.like if name.partition(".")[0] == "rows"),
            key=lambda name: int(name[5:] or 0),
        )

    def __len__(self) -> int:
        return len(self.planes)

    def take(self, classes_N: Ints) -> Tensor:
        """Unit vectors, float32 [N, K, D]."""
        return F.normalize(
            torch.stack([self.head.take(plane, classes_N).float() for plane in self.planes], 1),
            dim=2,
        )


def initial_state(name: str, rows_nD: Tensor, like: Tensor) -> Tensor:
    """What a new head holds in tensor `name` for rows as they start, [n, ...] in dtype and shape of
    `like` [0, ...].

    The rows themselves, length 1, 1 / |row as stored|, and zeros for all that sums over gradients
    or counts steps. Behind a dot stands which of several planes of rows it is of.
    """
    kind = name.partition(".")[0]
    if kind == "rows":
        return rows_nD.to(like.dtype)
    if kind == "lengths":
        return like.new_ones(len(rows_nD), *like.shape[1:])
    if kind == "inverse_norms":
        norms_n = torch.linalg.vector_norm(rows_nD.float(), dim=1)
        return torch.where(norms_n > SHORTEST, norms_n.reciprocal(), 0).to(like.dtype)
    return like.new_zeros(len(rows_nD), *like.shape[1:])


def write_head(
    folder: Path, like: dict[str, Tensor], num_classes: int, rows: Callable[[str, Ints], Tensor]
) -> None:
    """Write tensors named and shaped as `like`, of which `rows(name, classes)` gives consecutive
    rows; any world size reads them."""
    folder.mkdir()
    parts = []
    for name, none in like.items():
        classes = max(1, PART_BYTES // (none.element_size() * int(np.prod(none.shape[1:]))))
        parts += [
            (name, lo, min(lo + classes, num_classes)) for lo in range(0, num_classes, classes)
        ]
    for number, (name, lo, hi) in enumerate(
        track(parts, "writing class rows", disable=len(parts) < BARRED), 1
    ):
        tensor = rows(name, np.arange(lo, hi))
        place = {name: {"saved_offsets": [lo] + [0] * (tensor.dim() - 1)}}
        metadata = {_SHARDING: json.dumps(place), "DCP_VERSION": "1.0", "format": "pt"}
        save_file(
            {name: tensor},
            folder / f"shard-{number:05d}-model-00001-of-00001.safetensors",
            metadata,
        )
