"""Which classes of this rank take part in a step, and for which samples they count: by the draw,
the label spaces and the forgotten classes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from manyfaces.models.head import sampling
from manyfaces.models.head.rows import take
from manyfaces.models.head.sampling import Columns


class ClassChoice:
    """The choice among the classes [lo, hi) of `num_classes`, of which a share `rate` is drawn.

    `chunk_classes` are scored together. `spaces` are the first classes of the label spaces. The
    choice is made on `device`.
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
        self.forgotten_C: Tensor | None = None
        """bool: rows that stand for no class; None until classes are forgotten."""

    def columns(self, labels_B: Tensor, position: int) -> Columns:
        """The columns of the step at sample `position`, whose batch has the classes `labels_B`
        (int64, on `device`)."""
        columns = self._choose(labels_B, position)
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
        """The local rows, int64, that the step at sample `position` draws whatever its batch is; of
        a rate below 1."""
        nothing = torch.empty(0, dtype=torch.int64)
        chunks = self._choose(nothing, position).chunks
        ids = [chunk.ids for chunk in chunks if isinstance(chunk.ids, Tensor)]
        return torch.cat([*ids, nothing])

    def forget(self, rows: Tensor) -> None:
        """The local `rows` (int64, on the host) stand for no class any more."""
        if self.forgotten_C is None:
            forgotten_C = torch.zeros(self.hi - self.lo + 1, dtype=torch.bool)
        else:
            forgotten_C = self.forgotten_C.cpu()
        forgotten_C[rows] = True
        forgotten_C[-1] = True  # the row that stands for no class
        self.forgotten_C = forgotten_C.to(self.device)

    def _choose(self, labels_B: Tensor, position: int) -> Columns:
        return sampling.choose(
            self.num_classes,
            self.lo,
            self.hi,
            self.rate,
            self.seed,
            position,
            labels_B,
            self.chunk_classes,
        )

    def _space(self, classes: Tensor) -> Tensor:
        """The label space of each class, int16."""
        return (torch.searchsorted(self.spaces, classes, right=True) - 1).to(torch.int16)
