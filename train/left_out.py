"""Batches that a run leaves out, because a step on them gave no finite loss or gradient.

They are a part of the run's state: in a file of its folder before it goes back, and in each
checkpoint after that. So a kill at any moment loses none, and nor does a resume elsewhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.parsed import parsed
from manyfaces.data.orders.order import Order


class LeftOut(BaseModel):
    """A global batch that is left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    position: NonNegativeInt
    """Samples before it in the stream."""
    step: PositiveInt
    """The step that it would have been."""
    reason: str
    """What was not finite."""
    samples: list[NonNegativeInt]
    """Their numbers in the dataset, in the order of the stream."""
    names: list[str]
    """Their names."""

    def __str__(self) -> str:
        last = self.position + len(self.samples) - 1
        return f"step {self.step} ({self.reason} at samples {self.position} to {last})"


class LeftOutBatches:
    """All that a run has left out so far, the same on all ranks.

    It reads `file`, and adds what the checkpoint that the run goes on from knows besides, as
    `known`. Only rank 0 touches the file: what another node sees of it may be older. Collective.
    Raises `UserError` for a file that cannot be read.
    """

    def __init__(self, file: Path, known: Sequence[LeftOut], group: dist.ProcessGroup) -> None:
        self.file, self.group = file, group
        self._is_first = dist.get_rank(group) == 0
        batches: list[Any] = [on_all_ranks(lambda: self._merged(known), group)]
        dist.broadcast_object_list(batches, 0, group=group)
        self.batches: tuple[LeftOut, ...] = tuple(batches[0])

    def __len__(self) -> int:
        return len(self.batches)

    def __str__(self) -> str:
        return ", ".join(map(str, self.batches))

    def leaves_out(self, position: int, order: Order, batch_size: int) -> bool:
        """Whether the batch at this position is one of them. A run that goes on from another's
        checkpoint may have other batches: it is told by its samples too."""
        return any(
            batch.position == position and batch.samples == order.ids(position, batch_size).tolist()
            for batch in self.batches
        )

    def add(self, batch: LeftOut) -> None:
        """Leave out one more. Once this returns it is on disk. Collective. Raises `UserError` on
        every rank alike where it cannot be written."""
        batches = (*self.batches, batch)
        on_all_ranks(lambda: self._write(batches), self.group)
        self.batches = batches

    def _merged(self, known: Sequence[LeftOut]) -> list[LeftOut]:
        """What the file and the checkpoint know, which the file has from then on."""
        if not self._is_first:
            return []
        listed = read_left_out(self.file)
        merged = listed + [batch for batch in known if batch not in listed]
        if len(merged) > len(listed):
            self._write(merged)
        return merged

    def _write(self, batches: Sequence[LeftOut]) -> None:
        if not self._is_first:
            return
        try:
            write_atomic(self.file, "".join(f"{each.model_dump_json()}\n" for each in batches))
        except OSError as error:
            raise UserError(
                f"{self.file}: what is left out cannot be recorded ({error.strerror}), so the run "
                "stops; see to the disk, and run the same command to resume"
            ) from error


def read_left_out(file: Path) -> list[LeftOut]:
    """The batches in the file, none where there is no file. Raises `UserError` for a line that is
    no such batch: a run that forgot it would be another one."""
    if not file.exists():
        return []
    remedy = "restore the file, or remove it to take what the newest checkpoint knows"
    lines = file.read_bytes().splitlines()
    return [
        parsed(LeftOut, line, f"{file}:{number}", remedy) for number, line in enumerate(lines, 1)
    ]
