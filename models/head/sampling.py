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
        return len(self.ids) if isinstance(self.ids, Tensor) else self.ids.stop - self.ids.start


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


def choose(
    num_classes: int,
    lo: int,
    hi: int,
    rate: float,
    seed: int,
    position: int,
    labels_B: Tensor,
    size: int,
) -> Columns:
    """The classes of [lo, hi) that take part, at most `size` to a chunk: all at rate 1, else the
    drawn blocks and the batch's own.

    `labels_B` (int64) are the global batch's classes; those outside [lo, hi), such as -1, are
    passed over. Nothing here waits for a GPU: there the batch's own classes get B columns, of which
    those that are drawn already, repeated, or of other ranks are no class.
    """
    here_B = (labels_B >= lo) & (labels_B < hi)
    if rate >= 1:
        return Columns(_chunks(hi - lo, size, None), torch.where(here_B, labels_B - lo, -1))
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
    chunks = _chunks(len(ids), size, ids)

    block_B = labels_B // BLOCK
    turn_B = torch.searchsorted(drawn_k, block_B)
    found_B = torch.cat([drawn_k, drawn_k.new_full((1,), -1)]).index_select(0, turn_B)
    in_block_B = here_B & (found_B == block_B)
    column_B = turn_B * BLOCK + labels_B % BLOCK - before

    undrawn_B = here_B & ~in_block_B
    row_B, place_B = _undrawn_positives(labels_B - lo, undrawn_B, hi - lo)
    column_B = torch.where(undrawn_B, place_B + len(ids), column_B)
    if devices.host_sync_is_free(device):
        row_B = row_B[: int(undrawn_B.sum())]
    for start in range(0, len(row_B), size):
        part = row_B[start : start + size]
        chunks.append(Chunk(part, len(ids) + start, part == hi - lo))
    return Columns(chunks, torch.where(in_block_B | undrawn_B, column_B, -1))


def _undrawn_positives(row_B: Tensor, undrawn_B: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Columns for the batch's classes that were not drawn, B of them: their rows, `num_rows` where
    a column stands for no class, and the place among them that each undrawn sample has."""
    # Sorted, so that of equal ones the first gives the column; what is not undrawn sorts behind.
    sorted_B, order_B = torch.where(undrawn_B, row_B, num_rows).sort()
    first_B = torch.ones_like(undrawn_B)
    first_B[1:] = sorted_B[1:] != sorted_B[:-1]
    places_B = torch.arange(len(row_B), device=row_B.device)
    first_place_B = torch.where(first_B, places_B, 0).cummax(0).values
    place_B = torch.empty_like(places_B).scatter_(0, order_B, first_place_B)
    return torch.where(first_B, sorted_B, num_rows), place_B


def _chunks(count: int, size: int, ids: Tensor | None) -> list[Chunk]:
    """Chunks of the first `count` columns; `ids` are their local rows, or None where a column's
    number is its row."""
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return [Chunk(part if ids is None else ids[part], part.start) for part in parts]
