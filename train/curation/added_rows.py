"""How class rows that are added to a head start: as the mean of their images' embeddings, or as a
head draws them at its own start.

Shapes: k the added classes, n some of those, D the embedding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.configs.files import file_sha256
from manyfaces.models.head.rows import initial
from manyfaces.train.checkpoint.commit import COMMIT
from manyfaces.train.checkpoint.head_files import HeadFiles, Ints, initial_state, lengths
from manyfaces.train.curation.edit_source import Source


@dataclass(frozen=True)
class AddedRows:
    """What stands in each tensor of a head for added classes."""

    like: dict[str, Tensor]
    """An empty tensor [0, ...] for each tensor of the head."""
    seed: int
    unit: bool
    """Whether the head's rows start with length 1."""
    length: float
    """What the means are scaled to."""
    means_kD: Tensor | None
    """Unit vectors at which the rows start; zeros, or none at all, for rows that are drawn."""

    @classmethod
    def of(cls, source: Source, means_kD: Tensor | None) -> "AddedRows":
        """Rows for classes that are added to the source's head."""
        # The commit tells this edit from all others: with the run's own seed, an added class could
        # start as the twin of one that has moved.
        commit = int(file_sha256(source.path / COMMIT)[:16], 16)
        seed = rng.key(rng.Stream.HEAD_ADDED_ROWS, source.state.seed, commit)
        like, length = source.head.like, 1.0
        unit = "lengths" in like
        if means_kD is not None and not unit:
            length = _median_length(source.head)
        return cls(like, seed, unit, length, means_kD)

    def __call__(self, name: str, numbers_n: Ints) -> Tensor:
        """What stands in tensor `name` for consecutive numbers of added classes, [n, ...]."""
        sub_centre = name.partition(".")[2]
        first, end = int(numbers_n[0]), int(numbers_n[-1]) + 1
        dim = self.like["rows"].shape[1]
        seed = rng.key(self.seed, *sub_centre.encode())
        rows_nD = initial(seed, first, end, dim, torch.device("cpu"), unit=self.unit)[:-1]
        if self.means_kD is not None and not sub_centre:
            mean_nD = self.means_kD[first:end]
            rows_nD = torch.where(mean_nD.any(1, keepdim=True), mean_nD * self.length, rows_nD)
        return initial_state(name, rows_nD.to(self.like["rows"].dtype), self.like[name])


def _median_length(head: HeadFiles) -> float:
    """The median of the lengths of those rows that stand for a class."""
    lengths_C = lengths(head)
    lengths_C = lengths_C[lengths_C > 0]
    return float(np.median(lengths_C.numpy())) if len(lengths_C) else 1.0
