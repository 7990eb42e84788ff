"""The images of all sources in the order in which they are written, as arrays."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.data.conversion.edit import SourceImage
from manyfaces.data.conversion.landmarks import Landmarks
from manyfaces.data.dataset.names import short_names
from manyfaces.data.dataset.write import Item
from manyfaces.data.sources.source import Source

_NOT_FOR_KEYS = re.compile(r"[^A-Za-z0-9_/-]")
_KEY_CHARACTERS = 80
"""With a number after them, keys of so many characters fit the 100 bytes of a tar header."""

Ints = NDArray[np.int64]


class SourceItems:
    """The images to be written, in order; a shard's items are made when it is about to be
    written.

    `class_N` holds the class ids of all images of all sources, one source after the other, and
    `order` the rows of those that are written.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        class_N: NDArray[np.int32],
        order: Ints,
        landmarks: Landmarks | None,
    ) -> None:
        self.sources, self.class_N, self.order = sources, class_N, order
        self.landmarks = landmarks
        self.starts = np.cumsum([0] + [len(source.label_N) for source in sources])
        self.labels = short_names([source.path for source in sources])
        # Images that lie in sequence are read in sequence: a shard is sorted by place, training
        # shuffles over shards anyway.
        self.sort = any(source.in_sequence for source in sources)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> list[Item]:
        rows = self.order[part]
        if self.sort:
            rows = np.sort(rows)
        return [self._item(row) for row in rows.tolist()]

    def _item(self, row: int) -> Item:
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        source, source_row = self.sources[number], row - int(self.starts[number])
        place, name = source.place(source_row), source.name(source_row)
        points = None
        if self.landmarks is not None:
            points = self.landmarks.find(name, f"{self.labels[number]}/{name}", str(place))
        return Item(SourceImage(place, points), _key(name, row), int(self.class_N[row]))


def reading_order(sources: Sequence[Source], rows: Ints, seed: int, window: int) -> Ints:
    """Put `rows` (of all sources, one after the other) in seeded random order.

    Where a source's images can only be read in groups, groups are in random order and images are
    shuffled over windows of `window` images.
    """
    if all(source.group_N is None for source in sources):
        return rows[rng.permutation(rng.key(seed, rng.Stream.CONVERT_IMAGES), len(rows))]
    columns, base = [], 0
    for source in sources:
        groups = np.arange(len(source.label_N)) if source.group_N is None else source.group_N
        columns.append(base + groups.astype(np.int64))
        base = int(columns[-1][-1]) + 1
    group_R = np.concatenate(columns)[rows]
    order_G = rng.permutation(rng.key(seed, rng.Stream.CONVERT_GROUPS), base)
    size_G = np.bincount(group_R, minlength=base)[order_G]
    window_G = np.empty(base, np.int64)
    window_G[order_G] = (np.cumsum(size_G) - size_G) // window
    words = rng.words(
        rng.key(seed, rng.Stream.CONVERT_IMAGES), np.arange(len(rows), dtype=np.uint64)
    )
    return rows[np.lexsort((words, window_G[group_R]))]


def _key(name: str, number: int) -> str:
    """Make a WebDataset key that still tells where the image came from. A key ends at its first
    dot, so that dots are replaced."""
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    readable = _NOT_FOR_KEYS.sub("_", folder + slash + stem)
    return f"{readable[-_KEY_CHARACTERS:].lstrip('/')}-{number}"
