"""Search of a whole gallery for many probes, exact or by inverted lists with its recall measured.

Shapes: Q probes, N gallery rows, D the embedding, K neighbours.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from manyfaces.train.evaluation.nearest import (
    Floats,
    InvertedLists,
    Nearest,
    exact_search,
    recall,
)

_MEASURED_PROBES = 1000

Advance = Callable[[int], None]


class Found(NamedTuple):
    """What a search found, and how much of it, if it is approximate."""

    nearest: Nearest
    recall_first: float | None = None
    """The share of the probes whose exact nearest row was found as the first; None where the search
    was exact."""
    recall_all: float | None = None
    """The share of the exact K nearest rows that were found."""
    measured: int = 0
    """Probes that were searched for exactly besides, drawn at random."""


def search_ivf(
    probes_QD: Floats,
    gallery: Callable[[], Iterable[Floats]],
    num_rows: int,
    k: int,
    probed_lists: int,
    advance: Advance = lambda rows: None,
) -> Found:
    """Search by as many inverted lists as the square root of the rows, of which `probed_lists` are
    looked through for each probe; 1,000 probes are searched for exactly as well.

    `gallery` gives the blocks anew for each of three passes: for the centres of the lists, into the
    lists, and for the exact search. `advance` is told how many more of 3N rows are done.
    """
    num_lists = InvertedLists.lists_for(num_rows)
    lists = InvertedLists(probes_QD.shape[1], num_lists)
    wanted_N = np.zeros(num_rows, bool)
    wanted_N[InvertedLists.sample_rows(num_rows, num_lists)] = True
    sample, first = [], 0
    for block_ND in gallery():
        sample.append(block_ND[wanted_N[first : first + len(block_ND)]])
        first += len(block_ND)
        advance(len(block_ND))
    lists.train(np.concatenate(sample))
    for block_ND in gallery():
        lists.add(block_ND)
        advance(len(block_ND))
    nearest = lists.search(probes_QD, k, probed_lists)
    random = np.random.default_rng(0)
    count = min(_MEASURED_PROBES, len(probes_QD))
    measured = np.sort(random.choice(len(probes_QD), count, replace=False))
    exact = exact_search(probes_QD[measured], gallery(), k, advance)
    found = Nearest(nearest.scores_QK[measured], nearest.rows_QK[measured])
    first_right = found.rows_QK[:, 0] == exact.rows_QK[:, 0]
    return Found(nearest, float(first_right.mean()), recall(found, exact), count)
