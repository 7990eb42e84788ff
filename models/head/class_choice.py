"""Which classes of this rank take part in a step, and for which samples they count: by the draw,
the label spaces and the forgotten classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.configs.head_cost import undrawn_columns
from manyfaces.models.head import sampling
from manyfaces.models.head.devices import ToHost
from manyfaces.models.head.rows import take
from manyfaces.models.head.sampling import Choice, Columns


class _Ahead(NamedTuple):
    """What was done of a step before it."""

    labels_B: Tensor
    position: int
    choice: Choice | ToHost
    """The choice or, where the host makes it and the labels are on a device, the labels."""


class ClassChoice:
    """The choice among the classes [lo, hi) of `num_classes`, of which a share `rate` is drawn.

    `chunk_classes` are scored together. `spaces` are the first classes of the label spaces. The
    choice is made on `device`: the batch's, or the host.
    """

    def __init__(
        self,
        num_classes: int,
        lo: int,
        hi: int,
        *,
        rate: float,
        seed: int,
        chunk_classes: int,
        spaces: Sequence[int],
        device: torch.device,
    ) -> None:
        self.num_classes, self.lo, self.hi, self.device = num_classes, lo, hi, device
        self.rate, self.seed, self.chunk_classes = rate, seed, chunk_classes
        self.spaces = torch.tensor(list(spaces), device=device)
        self.space_C: Tensor | None = None
        """int16: the label space of each row; None where there is one for all."""
        if len(spaces) > 1:
            self.space_C = self._space(torch.arange(lo, hi + 1, device=device))
        self._ahead: _Ahead | None = None
        self.forgotten_C: Tensor | None = None
        """bool: rows that stand for no class; None until classes are forgotten."""

    def look_ahead(self, labels_B: Tensor, position: int) -> None:
        """Do what a step at sample `position` needs of the batch's classes (int64), on whichever
        device they are, short of waiting for it. Only `columns` of the same tensor makes use of
        it."""
        self._ahead = self._begin(labels_B, position)

    def columns(self, labels_B: Tensor, position: int) -> Columns:
        """The columns, on `device`, of the step at sample `position`, whose batch has the classes
        `labels_B` (int64, on any device)."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.labels_B is not labels_B or ahead.position != position:
            ahead = self._begin(labels_B, position)
        choice = ahead.choice
        if isinstance(choice, ToHost):
            labels_B = choice.read()
            choice = self._choose(labels_B, position)
        columns = choice.columns(self.chunk_classes)
        if (forgotten_C := self.forgotten_C) is not None:
            chunks = [
                replace(chunk, excluded_n=take(forgotten_C, chunk.ids)) for chunk in columns.chunks
            ]
            columns = columns._replace(chunks=chunks)
        if (space_C := self.space_C) is not None:
            chunks = [replace(chunk, space_n=take(space_C, chunk.ids)) for chunk in columns.chunks]
            spaces_S = torch.arange(len(self.spaces), dtype=torch.int16, device=self.device)
            columns = columns._replace(
                chunks=chunks,
                space_B=self._space(labels_B).long().clamp(min=0),
                spaces_S1=spaces_S[:, None],
            )
        return columns

    def drawn(self, position: int) -> Tensor:
        """The local rows, int64, that the step at sample `position` draws whatever its batch is;
        the rate has to be below 1."""
        drawn = self._choose(torch.empty(0, dtype=torch.int64), position).drawn
        assert isinstance(drawn, Tensor)
        return drawn

    def most_undrawn(self, batch_size: int) -> int:
        """How many of the classes of a batch have to be expected here beside those drawn."""
        return undrawn_columns(self.rate, batch_size, self.hi - self.lo, self.num_classes)

    def forget(self, rows: Tensor) -> None:
        """The local `rows` (int64, on the host) stand for no class any more."""
        if self.forgotten_C is None:
            forgotten_C = torch.zeros(self.hi - self.lo + 1, dtype=torch.bool)
        else:
            forgotten_C = self.forgotten_C.cpu()
        forgotten_C[rows] = True
        forgotten_C[-1] = True  # the row that stands for no class
        self.forgotten_C = forgotten_C.to(self.device)

    def _begin(self, labels_B: Tensor, position: int) -> _Ahead:
        """What can be done without a wait."""
        is_elsewhere = labels_B.device.type != self.device.type
        choice = ToHost(labels_B) if is_elsewhere else self._choose(labels_B, position)
        return _Ahead(labels_B, position, choice)

    def _choose(self, labels_B: Tensor, position: int) -> Choice:
        return sampling.choose(
            self.num_classes, self.lo, self.hi, self.rate, self.seed, position, labels_B
        )

    def _space(self, classes: Tensor) -> Tensor:
        """The label space of each class, int16."""
        return (torch.searchsorted(self.spaces, classes, right=True) - 1).to(torch.int16)
