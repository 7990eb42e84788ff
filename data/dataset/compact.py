"""A new dataset without what is forgotten in another, with its edits made real."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.manifest import Manifest
from manyfaces.data.dataset.names import identity_names
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.sample import member_at
from manyfaces.data.dataset.write import Item, write_dataset


def compact(part: Part, out: Path, processes: int | None = None) -> Manifest:
    """A new dataset in `out` without what is forgotten or dropped, each sample under the identity
    that edits gave it: samples in the same order, JPEG bytes as they are, class ids closed up.

    It has another fingerprint, so it is another experiment to a run. Raises `UserError`.
    """
    if part.remote is not None:
        raise UserError(
            f"{part.where}: a remote dataset cannot be compacted; do it in a local copy"
        )
    with identity_names(part) as lines:
        names = [line.rstrip("\n") for line in lines]
    names = names or [str(number) for number in range(part.manifest.num_identities)]
    everyone = np.arange(part.manifest.num_images)
    rows_N = everyone[~read_forgotten_part(part).mask(everyone, part.identity_N)]
    if not len(rows_N):
        raise UserError(f"{part.where}: everything in it is forgotten")
    left, class_N = np.unique(part.identity_N[rows_N], return_inverse=True)
    kept = _Kept(part, rows_N, class_N)
    source: dict[str, object] = {
        "source": "compact",
        "of": part.manifest.fingerprint,
        "samples": len(rows_N),
    }
    shard_images = max(shard.samples for shard in part.manifest.shards)
    return write_dataset(
        out,
        kept,
        _read_jpeg,
        [names[i] for i in left],
        source=source,
        shard_images=shard_images,
        processes=processes,
        template=part.manifest.template,
    )


class _Kept:
    """The kept samples as items to be written, made a shard at a time."""

    def __init__(self, part: Part, rows_N: NDArray[np.int64], class_N: NDArray[np.int64]) -> None:
        self.part, self.rows_N, self.class_N = part, rows_N, class_N

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, of_shard: slice) -> list[Item]:
        rows, classes = self.rows_N[of_shard].tolist(), self.class_N[of_shard].tolist()
        return [self._item(row, class_id) for row, class_id in zip(rows, classes, strict=True)]

    def _item(self, row: int, class_id: int) -> Item:
        path = self.part.shard_path(int(self.part.shard_N[row]))
        offset, size = int(self.part.offset_N[row]), int(self.part.size_N[row])
        folder, slash, file = member_at(path, offset)[0].rpartition("/")
        return Item((path, offset, size), folder + slash + file.partition(".")[0], class_id)


def _read_jpeg(source: object) -> bytes:
    """The bytes of an item's image in the shard that it was in."""
    assert isinstance(source, tuple)
    path, offset, size = source
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)
