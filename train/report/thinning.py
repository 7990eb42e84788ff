"""Fewer points of a line, so that a page stays small: what is left looks like the whole, and has
its extremes."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_POINTS = 240
"""Points of a line in the page; a chart is about 500 pixels wide."""


def thinned(y: ArrayLike, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Which points of a line to draw, at most `most` (4 or more) of them, in their order.

    Of each of equal stretches the least and the most are kept, and the first and last point of all.
    Not finite values are taken as zero.
    """
    values_N = np.nan_to_num(np.asarray(y, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if len(values_N) <= most:
        return np.arange(len(values_N))
    kept = {0, len(values_N) - 1}
    bounds = np.linspace(0, len(values_N), (most - 2) // 2 + 1).astype(np.int64)
    for start, end in pairwise(bounds.tolist()):
        stretch = values_N[start:end]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    return np.array(sorted(kept), np.int64)
