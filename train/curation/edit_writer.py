"""An edited checkpoint, written whole or not at all.

Shapes: C classes of the new head, n some of them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyfaces.configs.files import write_atomic
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import Names
from manyfaces.train.checkpoint.commit import (
    commit_folder,
    committed,
    digest,
    written_files,
)
from manyfaces.train.checkpoint.edit_lock import unfinished_folder
from manyfaces.train.checkpoint.head_files import Ints, write_head
from manyfaces.train.checkpoint.layout import HEAD, STATE
from manyfaces.train.checkpoint.new_folder import make_room
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.curation.edit_source import Source

FORGOTTEN_ROW = np.iinfo(np.int64).min
"""In place of a row's number: the class is forgotten, all it has is zero."""

Added = Callable[[str, Ints], Tensor]
"""From the name of a tensor and consecutive numbers of added classes to what stands there for
them, [n, ...]."""


def write_edited(
    source: Source,
    out: Path,
    names: Names,
    row_C: Ints,
    added: Added,
    verb: str,
    counts: dict[str, int],
) -> None:
    """Write the source's checkpoint to `out` with these rows of its head, in this order; in place
    of a row `-1 - number` stands for an added class.

    `verb` and `counts` say in `state.json` what was done. Raises `UserError` where the disk is too
    full.
    """
    files = committed(source.path).files
    if not source.named:
        counts["named by number"] = source.head.num_classes
    edited_files = (STATE, IDENTITIES)
    copied = [n for n in files if not n.startswith(f"{HEAD}/") and n not in edited_files]
    copied_bytes = sum(files[name].bytes for name in copied)
    make_room(out, _head_bytes(source, len(row_C)) + copied_bytes)
    with unfinished_folder(out) as temporary:
        for name in copied:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, temporary / name)
        write_head(temporary / HEAD, source.head.like, len(row_C), _rows(source, row_C, added))
        (temporary / IDENTITIES).write_bytes(names.body())
        state = _state(source, len(row_C), verb, counts)
        write_atomic(temporary / STATE, state.to_json())
        written = digest(temporary, written_files(temporary))
        commit_folder(temporary, out, source.state.step, 1, written)


def _rows(source: Source, row_C: Ints, added: Added) -> Callable[[str, Ints], Tensor]:
    """From the name of a tensor and classes of the new head to their rows."""
    like = source.head.like

    def rows(name: str, classes_n: Ints) -> Tensor:
        row_n = row_C[classes_n]
        taken = like[name].new_zeros(len(row_n), *like[name].shape[1:])
        if len(old := np.flatnonzero(row_n >= 0)):
            taken[torch.from_numpy(old)] = source.head.take(name, row_n[old])
        if len(new := np.flatnonzero((row_n < 0) & (row_n != FORGOTTEN_ROW))):
            taken[torch.from_numpy(new)] = added(name, -1 - row_n[new])
        return taken

    return rows


def _state(source: Source, num_classes: int, verb: str, counts: dict[str, int]) -> RunState:
    edited: dict[str, Any] = {"verb": verb, "source": str(source.path.absolute()), "counts": counts}
    if source.state.edited is not None:
        edited["before"] = source.state.edited
    return source.state.at(num_classes=num_classes, edited=edited)


def _head_bytes(source: Source, num_classes: int) -> int:
    row_bytes = sum(
        none.element_size() * int(np.prod(none.shape[1:])) for none in source.head.like.values()
    )
    return row_bytes * num_classes
