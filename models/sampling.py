"""Which class rows take part in a step (Partial FC, arXiv 2203.15565): every class that the batch shows, and a share of the others.

The others are drawn as blocks of 128 consecutive ids: rows are then read in bulk, and drawing costs C / 128, not C. Class ids are in
random order, so a block is a random set of people. The draw is a pure function of (seed, position) over all classes; a rank takes what
falls into its own range, so the choice is the same at any world size.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs import counter

BLOCK = 128
_PURPOSE = 0x53414D50  # keeps these words apart from other draws of the same seed and position


def blocks(num_classes: int, rate: float, seed: int, position: int) -> NDArray[np.int64]:
    """Sorted numbers of the blocks drawn for the step that starts at sample `position`: about `rate` of all, at least one if rate > 0.

    Stratified: the circle of blocks is cut into equal arcs and one block is drawn from each, so every range of ids, hence every rank, has
    its share to within a few blocks. The circle is turned at random each step: each block has the same chance though arcs differ.
    """
    total = -(-num_classes // BLOCK)
    count = max(1, round(rate * total)) if rate > 0 else 0
    edges = np.arange(count + 1) * total // max(count, 1)
    words = counter.words(counter.key(seed, position, _PURPOSE), np.arange(count + 1, dtype=np.uint64))
    picks = edges[:-1] + (words[1:] % np.diff(edges).astype(np.uint64)).astype(np.int64)
    return np.sort((picks + int(words[0]) % total) % total)


def choose(num_classes: int, lo: int, hi: int, rate: float, seed: int, position: int, labels_B: Tensor) -> Tensor | None:
    """Sorted unique class ids in [lo, hi) that take part, int64 on the labels' device; None is all of them (rate 1).

    `labels_B` are the global batch's classes; those outside [lo, hi), such as -1, are passed over. Below rate 1 the number of rows depends
    on the labels, so on a GPU the host waits here.
    """
    if rate >= 1:
        return None
    here_B = (labels_B >= lo) & (labels_B < hi)
    drawn = blocks(num_classes, rate, seed, position)
    drawn = drawn[(drawn + 1) * BLOCK > lo]
    drawn = drawn[drawn * BLOCK < hi]
    ids = torch.from_numpy(drawn).to(labels_B.device)[:, None] * BLOCK + torch.arange(BLOCK, device=labels_B.device)
    # Only the outermost blocks can reach beyond the range: cut there by numbers that the host knows.
    before, beyond = (max(lo - drawn[0] * BLOCK, 0), max((drawn[-1] + 1) * BLOCK - hi, 0)) if drawn.size else (0, 0)
    chosen: Tensor = torch.unique(torch.cat([ids.flatten()[before : ids.numel() - beyond], labels_B[here_B]]))
    return chosen


def chunks(ids: Tensor | None, num_rows: int, size: int) -> list[slice | Tensor]:
    """The chosen local rows, at most `size` at a time: slices of `num_rows` where all are chosen (no copies), else parts of `ids`."""
    if ids is None:
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    return [ids[start : start + size] for start in range(0, len(ids), size)]
