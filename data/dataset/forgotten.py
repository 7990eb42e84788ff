"""What is forgotten: `forgotten.json` beside a dataset lists the identities and samples that no job
sees again (the right to be forgotten).

A forgotten sample keeps its place in the order, with label -1, so that no other sample moves and
runs resume. The shards still hold the bytes, and older checkpoints the centres, until they are
removed: `compact` makes a dataset without them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from manyfaces.configs.errors import UserError
from manyfaces.configs.parsed import parsed
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import FORGOTTEN, Manifest
from manyfaces.data.dataset.part import Part

_REMEDY = "restore it, or remove it and forget the same people again"


class _File(BaseModel):
    """The content of `forgotten.json`: rows and identities of the index that has this SHA-256."""

    model_config = ConfigDict(frozen=True, strict=True)
    index_sha256: str
    identities: tuple[NonNegativeInt, ...]
    samples: tuple[NonNegativeInt, ...]


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
    """What is forgotten in the part or dropped by its edits, by rows and identities of its own
    index. Raises `UserError` as `read_forgotten_file` does.

    A sample that the index has under a forgotten identity is forgotten, whatever identity it was
    given since; and an identity that edits have left without samples is forgotten like one whose
    samples were all forgotten: its row of the head is zero and left out of the softmax.
    """
    listed = read_forgotten_file(part)
    if (edits := part.edits) is None:
        return listed
    of_forgotten = edits.row_n[np.isin(edits.indexed_n, listed.identities)]
    samples = np.unique(np.concatenate([listed.samples, edits.dropped, of_forgotten]))
    touched = np.union1d(edits.indexed_n, part.identity_N[listed.samples].astype(np.int64))
    of_touched = np.flatnonzero(np.isin(part.identity_N, touched))
    left = np.unique(part.identity_N[np.setdiff1d(of_touched, samples)])
    return Forgotten(samples, np.union1d(listed.identities, np.setdiff1d(touched, left)))


def read_forgotten_file(part: Part) -> Forgotten:
    """What `forgotten.json` says of the part, by rows and identities of its own index; nothing
    where there is no such file. Raises `UserError` if it was written for another index."""
    file = part.path / FORGOTTEN
    try:
        body = file.read_bytes()
    except FileNotFoundError:
        body = None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); {_REMEDY}") from error
    return parse_forgotten(body, str(file), part.manifest)


def parse_forgotten(body: bytes | None, where: str, manifest: Manifest) -> Forgotten:
    """What the bytes of a `forgotten.json` say, which stands at `where` beside this manifest;
    nothing is forgotten where there is none. Raises `UserError` as `read_forgotten_part` does."""
    if body is None:
        return Forgotten(np.empty(0, np.int64), np.empty(0, np.int64))
    told = parsed(_File, body, where, _REMEDY)
    if told.index_sha256 != manifest.index_sha256:
        raise UserError(
            f"{where}: is of another index than the dataset has now; remove it and run "
            "`manyfaces data forget` again"
        )
    for what, numbers, limit in (
        ("sample", told.samples, manifest.num_images),
        ("identity", told.identities, manifest.num_identities),
    ):
        if (highest := max(numbers, default=-1)) >= limit:
            raise UserError(f"{where}: {what} {highest} is not in [0, {limit}); {_REMEDY}")
    return Forgotten(*(np.unique(np.array(n, np.int64)) for n in (told.samples, told.identities)))
