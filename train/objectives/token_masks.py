"""Which patches of an image are hidden: blocks, drawn as a pure function of (seed, position).

Shapes: N images, T patches, row by row.
"""

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng

_NUMBERS = 64
"""Random numbers of an image."""
_BLOCK_NUMBERS = 4
_SMALLEST_BLOCK = 4
_ASPECT = 0.3
"""Smallest height / width of a block; the largest is its inverse."""


def block_masks(
    seed: int,
    positions_N: NDArray[np.int64],
    view: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
) -> NDArray[np.bool_]:
    """[N, T]: the hidden patches of the images at these positions of the stream, of so many rows
    and columns. With `probability` an image has a share of them hidden, uniform within `ratio` and
    rounded to whole patches, exactly: as blocks (BEiT, arXiv 2106.08254), and where no further
    block fits as single patches."""
    own = rng.key(seed, rng.Stream.TOKEN_MASKS, view)
    return np.stack([_one(own, int(p), grid, probability, ratio) for p in positions_N])


def _one(
    own: int, position: int, grid: tuple[int, int], probability: float, ratio: tuple[float, float]
) -> NDArray[np.bool_]:
    mask_HW = np.zeros(grid, bool)
    counters = np.uint64(position) * np.uint64(_NUMBERS) + np.arange(_NUMBERS, dtype=np.uint64)
    chance, share, *numbers = rng.uniform(own, counters).tolist()
    if chance >= probability:
        return mask_HW.ravel()
    left = round((ratio[0] + (ratio[1] - ratio[0]) * share) * mask_HW.size)
    for at in range(0, len(numbers) - _BLOCK_NUMBERS + 1, _BLOCK_NUMBERS):
        if left < _SMALLEST_BLOCK:
            break
        area = _SMALLEST_BLOCK + numbers[at] * (left - _SMALLEST_BLOCK)
        aspect = _ASPECT ** (1 - 2 * numbers[at + 1])
        height = min(max(round((area * aspect) ** 0.5), 1), grid[0])
        width = min(max(round((area / aspect) ** 0.5), 1), grid[1])
        top = int(numbers[at + 2] * (grid[0] - height + 1))
        first = int(numbers[at + 3] * (grid[1] - width + 1))
        block = mask_HW[top : top + height, first : first + width]
        new = int((~block).sum())
        if new <= left:
            block[:] = True
            left -= new
    mask_T = mask_HW.ravel()
    free = np.flatnonzero(~mask_T)
    mask_T[free[rng.permutation(rng.key(own, position), len(free))[:left]]] = True
    return mask_T
