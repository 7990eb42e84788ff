"""What is forgotten: `forgotten.json` beside a dataset lists the identities and samples that no job
sees again (the right to be forgotten).

A forgotten sample keeps its place in the order, with label -1, so that no other sample moves and
runs resume. The shards still hold the bytes, and older checkpoints the centres, until they are
removed: `compact` makes a dataset without them.
"""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import FORGOTTEN
from manyfaces.data.dataset.part import Part


@dataclass(frozen=True)
class Forgotten:
    """Which samples and identities are forgotten, by their numbers in a dataset or in a part:
    int64, sorted."""

    samples: NDArray[np.int64]
    identities: NDArray[np.int64]

    def mask(
        self, samples_N: NDArray[np.int64], identities_N: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Which of the samples are forgotten, bool [N]; `identities_N` has the identity of each.
        Both are numbers of the same dataset or part as these."""
        if not len(self.samples) and not len(self.identities):
            return np.zeros(len(samples_N), bool)
        return np.isin(samples_N, self.samples) | np.isin(identities_N, self.identities)

    def in_words(self) -> str:
        """How much is forgotten; empty where nothing is."""
        if not len(self.samples) and not len(self.identities):
            return ""
        return f"{len(self.identities):,} identities and {len(self.samples):,} single samples"


def read_forgotten(dataset: Dataset) -> Forgotten:
    """What is forgotten in all parts, as sample ids and class ids of the whole dataset; nothing for
    a part without `forgotten.json`. Raises `UserError` if a file was written for another index."""
    told = [(part, read_forgotten_part(part)) for part in dataset.parts]
    return Forgotten(
        np.concatenate([part.first_sample + own.samples for part, own in told]),
        np.concatenate([part.first_class + own.identities for part, own in told]),
    )


def read_forgotten_part(part: Part) -> Forgotten:
    """What is forgotten in the part, by rows and identities of its own index; nothing where there
    is no `forgotten.json`. Raises `UserError` if it was written for another index."""
    file = part.path / FORGOTTEN
    if not file.exists():
        return Forgotten(np.empty(0, np.int64), np.empty(0, np.int64))
    try:
        told = json.loads(file.read_text())
        samples, identities, index = told["samples"], told["identities"], told["index_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error!r}); restore it, or forget the same people again and "
            "remove it"
        ) from error
    if index != part.manifest.index_sha256:
        raise UserError(
            f"{file}: is of another index than {part.path} has now; remove it and run "
            "`manyfaces data forget` again"
        )
    return Forgotten(np.array(samples, np.int64), np.array(identities, np.int64))
