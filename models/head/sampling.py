"""The draw of the class rows that take part in a step (Partial FC, arXiv 2203.15565): every class
that the batch shows, and a share of the others.

The others are drawn as blocks of 128 consecutive ids: rows are then read in bulk, and drawing costs
C / 128, not C. Class ids are in random order, so a block is a random set of people. The draw is a
pure function of (seed, position) over all classes; a rank takes what falls into its own range, so
the choice is the same at any world size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.configs.head_cost import undrawn_columns
from manyfaces.models.head import devices

BLOCK = 128


def blocks(num_classes: int, rate: float, seed: int, position: int) -> NDArray[np.int64]:
    """Sorted numbers of the blocks drawn for the step that starts at sample `position`: about
    `rate` of all, at least one if rate > 0.

    Stratified: the circle of blocks is cut into equal arcs and one block is drawn from each, so
    every range of ids, hence every rank, has its share to within a few blocks. The circle is turned
    at random each step: each block has the same chance though arcs differ.
    """
    total = -(-num_classes // BLOCK)
    count = max(1, round(rate * total)) if rate > 0 else 0
    edges = np.arange(count + 1) * total // max(count, 1)
    words = rng.words(
        rng.key(seed, position, rng.Stream.HEAD_SAMPLING), np.arange(count + 1, dtype=np.uint64)
    )
    picks = edges[:-1] + (words[1:] % np.diff(edges).astype(np.uint64)).astype(np.int64)
    return np.sort((picks + int(words[0]) % total) % total)


@dataclass(frozen=True)
class Chunk:
    """Columns of a rank's softmax that are scored together."""

    ids: slice | Tensor
    """The local rows of the columns: a slice, or int64 [n]; the number of rows, one past the last,
    stands for no class."""
    first: int
    """Number of the first column."""
    excluded_n: Tensor | None = None
    """bool: columns that stand for no class or a forgotten one; None where there are none."""
    space_n: Tensor | None = None
    """int16: the label space of each column, if there are several."""

    def __len__(self) -> int:
        return _length(self.ids)


class Columns(NamedTuple):
    """All columns of a rank's softmax; each class that takes part has exactly one of them."""

    chunks: list[Chunk]
    targets_B: Tensor
    """int64: each sample's own column; negative where its class is not of this rank."""
    space_B: Tensor | None = None
    """int64: each sample's label space, if there are several: only columns of this one count for
    it."""
    spaces_S1: Tensor | None = None
    """int16 [S, 1]: all label spaces."""


@dataclass(frozen=True)
class Choice:
    """The classes of a rank that take part in a step.

    The batch's own classes that were not drawn are in the first places of `undrawn_B`; how many
    they are is known on the device first. A GPU gives them `least` columns in every step, which
    are almost always enough (`head_cost.undrawn_columns`). The host reads the number before the
    columns are scored, and where they are not enough the rest have columns too: so no class is ever
    without one, whatever the labels are.

    Nothing has to wait for that number. It is a function of the batch's labels, which ranks tell
    each other before the backbone runs (`PartialFC.prefetch`), and is on its way to the host in
    front of the backbone's work; when the host reads it, it has handed out all of that work. A
    choice that is made when the backbone's work is in flight already does wait for it, but only
    where there can be more classes than `least`.
    """

    drawn: slice | Tensor
    """Local rows of the drawn classes, each of which has a column, the first ones."""
    targets_B: Tensor
    """As in `Columns`."""
    undrawn_B: Tensor
    """int64: local rows of the batch's other classes of this rank, in ascending order, each once;
    behind them the number of rows, which stands for no class."""
    least: int
    """Columns for these classes in every step; those that are not needed stand for no class."""
    num_undrawn: devices.ToHost | None
    """int64 []: how many these classes are; None where they cannot be more than `least`."""
    num_rows: int
    """Classes of the rank."""

    def columns(self, size: int) -> Columns:
        """The columns, at most `size` to a chunk."""
        num_drawn = _length(self.drawn)
        chunks = [
            Chunk(_part(self.drawn, start, min(start + size, num_drawn)), start)
            for start in range(0, num_drawn, size)
        ]
        count = self.least
        if self.num_undrawn is not None:
            count = max(count, int(self.num_undrawn.read().numpy()))
        for start in range(0, count, size):
            ids = self.undrawn_B[start : min(start + size, count)]
            is_none = ids == self.num_rows if self.least else None
            chunks.append(Chunk(ids, num_drawn + start, is_none))
        return Columns(chunks, self.targets_B)


def choose(
    num_classes: int, lo: int, hi: int, rate: float, seed: int, position: int, labels_B: Tensor
) -> Choice:
    """The classes of [lo, hi) that take part: all at rate 1, else the drawn blocks and the batch's
    own.

    `labels_B` (int64) are the global batch's classes; those outside [lo, hi), such as -1, are
    passed over. Nothing here waits for a GPU.
    """
    here_B = (labels_B >= lo) & (labels_B < hi)
    if rate >= 1:
        targets_B = torch.where(here_B, labels_B - lo, -1)
        return Choice(slice(0, hi - lo), targets_B, labels_B[:0], 0, None, hi - lo)
    drawn = blocks(num_classes, rate, seed, position)
    drawn = drawn[((drawn + 1) * BLOCK > lo) & (drawn * BLOCK < hi)]
    device, places = labels_B.device, torch.arange(BLOCK, device=labels_B.device)
    drawn_k = devices.to_device(drawn, device)
    # Only the outermost blocks can reach beyond the range: they are cut by numbers that the host
    # knows.
    before, beyond = 0, 0
    if drawn.size:
        before = max(lo - int(drawn[0]) * BLOCK, 0)
        beyond = max((int(drawn[-1]) + 1) * BLOCK - hi, 0)
    ids = (drawn_k[:, None] * BLOCK + places).flatten()[before : drawn.size * BLOCK - beyond] - lo

    block_B = labels_B // BLOCK
    turn_B = torch.searchsorted(drawn_k, block_B)
    found_B = torch.cat([drawn_k, drawn_k.new_full((1,), -1)]).index_select(0, turn_B)
    in_block_B = here_B & (found_B == block_B)
    column_B = turn_B * BLOCK + labels_B % BLOCK - before

    undrawn_B = here_B & ~in_block_B
    rows_B, place_B, count = _each_once(torch.where(undrawn_B, labels_B - lo, hi - lo), hi - lo)
    column_B = torch.where(undrawn_B, place_B + len(ids), column_B)
    targets_B = torch.where(in_block_B | undrawn_B, column_B, -1)
    if devices.host_sync_is_free(device):
        return Choice(ids, targets_B, rows_B, 0, devices.ToHost(count), hi - lo)
    least = undrawn_columns(rate, len(labels_B), hi - lo, num_classes)
    may_be_more = least < min(len(labels_B), hi - lo)
    num_undrawn = devices.ToHost(count) if may_be_more else None
    return Choice(ids, targets_B, rows_B, least, num_undrawn, hi - lo)


def _each_once(row_B: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `row_B` that are below `num_rows`, in ascending order, each once, and `num_rows`
    behind them; the place of each sample's row among them; and their number, int64 []."""
    # What is no row sorts behind all others.
    sorted_B, order_B = row_B.sort()
    first_B = sorted_B < num_rows
    first_B[1:] &= sorted_B[1:] != sorted_B[:-1]
    sorted_place_B = first_B.cumsum(0) - 1
    place_B = torch.empty_like(sorted_place_B).scatter_(0, order_B, sorted_place_B)
    # Repetitions go to a place behind the last.
    to_B = torch.where(first_B, sorted_place_B, len(row_B))
    rows_B = row_B.new_full((len(row_B) + 1,), num_rows).scatter_(0, to_B, sorted_B)[:-1]
    return rows_B, place_B, first_B.sum()


def _length(ids: slice | Tensor) -> int:
    return len(ids) if isinstance(ids, Tensor) else ids.stop - ids.start


def _part(ids: slice | Tensor, start: int, stop: int) -> slice | Tensor:
    return ids[start:stop] if isinstance(ids, Tensor) else slice(start, stop)
