"""The tensors of a checkpoint's `head/` in one process: read by class, whatever world size wrote
them, and written a part at a time.

Shapes: C classes, n some of them, N samples, K sub-centres, D the embedding.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import track
from safetensors import safe_open
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.models.head.rows import SHORTEST
from manyfaces.train.checkpoint.commit import committed, committed_files
from manyfaces.train.checkpoint.layout import HEAD
from manyfaces.train.checkpoint.sharded import sharding_metadata
from manyfaces.train.checkpoint.tensor_file import SHARDING, write_tensors

Ints = NDArray[np.int64]
PART_BYTES = 256 << 20
"""Most bytes of a tensor in one file that is written; it and its making are held at a time."""
BARRED = 8
"""Number of files from which on a progress bar is shown."""


class HeadFiles:
    """A committed checkpoint's head, memory-mapped: only rows that are asked for are read.

    Raises `UserError` where the files hold another number of classes than `num_classes`, and where
    their bytes are not as committed.
    """

    def __init__(self, checkpoint: Path, num_classes: int) -> None:
        parts: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for file in self._files(checkpoint):
            with safe_open(file, "pt") as opened:
                places = json.loads((opened.metadata() or {}).get(SHARDING, "{}"))
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

    @staticmethod
    def _files(checkpoint: Path) -> Iterable[Path]:
        """The files of the head, each once its bytes were compared with what was committed."""
        names = [name for name in committed(checkpoint).files if name.startswith(f"{HEAD}/")]
        told = f"comparing the bytes of {escape(checkpoint.name)}"
        files = committed_files(checkpoint, names)
        return track(files, told, total=len(names), disable=len(names) < BARRED)

    @property
    def like(self) -> dict[str, Tensor]:
        """An empty tensor [0, ...] for each name: dtypes and the shapes of a row."""
        return {name: found[0][1][:0] for name, found in self._parts.items()}

    def take(self, name: str, classes: Ints) -> Tensor:
        """A copy of the tensor's rows of these classes, [n, ...]."""
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


def refuse_without_head(config: Config, checkpoint: Path) -> None:
    """Raise `UserError` for a run whose objective has no class centres."""
    if not config.has_head:
        raise UserError(
            f"{checkpoint}: its objective {config.objective.word()} has no class centres; give a "
            "run with a margin softmax"
        )


def lengths(head: HeadFiles) -> Tensor:
    """The length of each class's row, float32 [C]; 0 for a class that was forgotten."""
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
    """The class centres of a checkpoint's head: each sub-centre has a tensor, `rows`, `rows.1` and
    so on."""

    def __init__(self, head: HeadFiles) -> None:
        self.head = head
        self.tensors = sorted(
            (name for name in head.like if name.partition(".")[0] == "rows"),
            key=lambda name: int(name[5:] or 0),
        )

    def __len__(self) -> int:
        """The number of sub-centres of a class."""
        return len(self.tensors)

    @property
    def dim(self) -> int:
        """The numbers of a sub-centre."""
        return self.head.like[self.tensors[0]].shape[1]

    def stored(self, classes_n: Ints) -> Tensor:
        """The sub-centres of classes as long as they are, float32 [n, K, D]."""
        rows = [self.head.take(name, classes_n).float() for name in self.tensors]
        return torch.stack(rows, 1)

    def take(self, classes_N: Ints) -> Tensor:
        """The sub-centres of each sample's class as unit vectors, float32 [N, K, D]."""
        return F.normalize(self.stored(classes_N), dim=2)


def initial_state(name: str, rows_nD: Tensor, like: Tensor) -> Tensor:
    """What a new head holds in tensor `name` for classes whose rows start as `rows_nD`: [n, ...] in
    dtype and shape of `like` [0, ...].

    `rows` are the rows themselves, `lengths` are 1, `inverse_norms` are 1 / |row as stored|, and
    all that sums over gradients or counts steps is 0. A number after a dot in the name is that of
    the sub-centre.
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
    """Write tensors with the names, dtypes and shapes of `like` to a new folder; any world size
    reads them.

    `rows(name, classes)` gives the rows of consecutive classes, [n, ...].
    """
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
        metadata = sharding_metadata({name: [lo] + [0] * (tensor.dim() - 1)})
        file = f"shard-{number:05d}-model-00001-of-00001.safetensors"
        write_tensors(folder / file, {name: tensor}, metadata)
