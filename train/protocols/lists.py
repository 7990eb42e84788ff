"""What protocols over lists have in common: their images, or embeddings that are ready, list by
list.

Shapes: N rows of a list, D the embedding.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.nearest import Floats, blocks, unit
from manyfaces.train.evaluation.result import Encoded
from manyfaces.train.protocols.labelled import Labelled
from manyfaces.train.protocols.protocol import Protocol


class _Images(Sequence[Encoded]):
    """Images that are read when they are asked for."""

    def __init__(self, read: Callable[[int], Encoded], rows: range) -> None:
        self._read, self._rows = read, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "_Images": ...
    def __getitem__(self, index: int | slice) -> "Encoded | _Images":
        if isinstance(index, slice):
            return _Images(self._read, self._rows[index])
        return self._read(self._rows[index])


class OverLists(Protocol):
    """A protocol over several lists, each of images or of embeddings."""

    reads_lazily = True

    def __init__(self, lists: Sequence[Labelled], flip: Flip) -> None:
        self.lists, self.flip = lists, flip
        counts = [len(each) if each.read is not None else 0 for each in lists]
        self._starts = np.cumsum([0, *counts])

    def images(self) -> Sequence[Encoded]:
        return _Images(self._read, range(int(self._starts[-1])))

    def keys(self) -> Sequence[Hashable]:
        return [
            each.key(row)
            for each in self.lists
            if each.read is not None
            for row in range(len(each))
        ]

    def image_name(self, index: int) -> str:
        held, row = self._place(index)
        return f"{held.where}: {held.name(row)}"

    def unit_blocks(self, embeddings_ND: Floats, number: int) -> Iterator[Floats]:
        """The unit embeddings of a list, of which `embeddings_ND` are those of all images, some
        rows at a time."""
        held = self.lists[number]
        first = int(self._starts[number])
        own_ND = embeddings_ND[first : int(self._starts[number + 1])]
        parts = held.features.blocks() if held.features is not None else blocks(own_ND)
        row = 0
        for part_ND in parts:
            if not np.isfinite(part_ND).all():
                raise UserError(f"{held.where}: embeddings that are not finite from row {row} on")
            yield unit(part_ND)
            row += len(part_ND)

    def unit_rows(self, embeddings_ND: Floats, number: int) -> Floats:
        """The same, of the whole list."""
        return np.concatenate(list(self.unit_blocks(embeddings_ND, number)))

    def advance(self, total: int) -> Callable[[int], None]:
        """What is told of so many more parts of the work of `result`, of `total` in all."""
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self.working(done, total)

        return told

    def check_widths(self, embeddings_ND: Floats) -> None:
        """Raise `UserError` where ready embeddings have another width than those of the network, or
        than each other."""
        widths = {each.where: each.features.dim for each in self.lists if each.features is not None}
        if self._starts[-1]:
            widths["the network"] = embeddings_ND.shape[1]
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{where} {width}" for where, width in widths.items())
            raise UserError(
                f"{self.name}: the numbers of an embedding differ ({told}); ready embeddings are "
                "compared with those of the same network only"
            )

    def _read(self, index: int) -> Encoded:
        held, row = self._place(index)
        assert held.read is not None
        return held.read(row)

    def _place(self, index: int) -> tuple[Labelled, int]:
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return self.lists[number], index - int(self._starts[number])


def codes_among(probes: Labelled, gallery: Labelled) -> NDArray[np.int64]:
    """Which of the gallery's identities each probe shows, by name; -2 where it is none of them."""
    code_of = {name: code for code, name in enumerate(gallery.identities)}
    own = np.array([code_of.get(name, -2) for name in probes.identities], np.int64)
    return own[probes.code_N]


def shared_images(probes: Labelled, gallery: Labelled) -> list[str]:
    """The names of the probes that are in the gallery too, as the same file."""
    held = {gallery.key(row) for row in range(len(gallery))}
    return [probes.name(row) for row in range(len(probes)) if probes.key(row) in held]
