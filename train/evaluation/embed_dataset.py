"""Samples of a dataset as unit embeddings, in the order of their ids: no augmentation, no mirror
image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.samples import Store
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.result import Encoded

_SHARDS_AHEAD = 4
_WINDOW = 1 << 20
"""Sample ids that are looked through at a time."""


class Embedded(NamedTuple):
    """Some samples, all of one part of the dataset."""

    ids_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    keys: list[str]
    """`SHARD:KEY` of each."""
    unit_ND: Tensor
    """Unit embeddings, float32 on the device."""


@dataclass
class LeftOut:
    """How many samples are not among the embedded, and why."""

    forgotten: int = 0
    broken: int = 0


def embed_dataset(
    dataset: Dataset,
    embedder: Embedder,
    left_out: LeftOut,
    advance: Callable[[int], None],
    wanted_C: NDArray[np.bool_] | None = None,
) -> Iterator[Embedded]:
    """Embed all samples of the wanted classes, or of all classes.

    Samples that are forgotten, whose bytes are not even read, and those that cannot be decoded are
    left out, and counted in `left_out`. `advance` is told how many more samples are done.
    """
    for part in dataset.parts:
        batches = _read(part, wanted_C, embedder.batch_size, left_out, advance)
        for (ids_N, keys), embedded in embedder.stream(batches):
            rows_N = embedded.rows_N
            left_out.broken += len(ids_N) - len(rows_N)
            if len(rows_N):
                yield Embedded(
                    part.first_sample + ids_N[rows_N],
                    part.labels(ids_N[rows_N]),
                    [keys[row] for row in rows_N],
                    F.normalize(embedded.embeddings_ND),
                )


_IdsAndKeys = tuple[NDArray[np.int64], list[str]]


def _read(
    part: Part,
    wanted_C: NDArray[np.bool_] | None,
    batch_size: int,
    left_out: LeftOut,
    advance: Callable[[int], None],
) -> Iterator[tuple[_IdsAndKeys, Sequence[Encoded]]]:
    """Sample ids in the part, their keys, and the bytes of their images."""
    store = Store(part)
    forgotten, num_images = read_forgotten_part(part), part.manifest.num_images
    try:
        for first in range(0, num_images, _WINDOW):
            window_N = np.arange(first, min(first + _WINDOW, num_images))
            if wanted_C is not None:
                window_N = window_N[wanted_C[part.labels(window_N)]]
            kept_N = window_N[~forgotten.mask(window_N, part.identity_N[window_N])]
            left_out.forgotten += len(window_N) - len(kept_N)
            advance(len(window_N) - len(kept_N))
            shards = np.unique(part.shard_N[kept_N]).astype(np.int64)
            for start in range(0, len(kept_N), batch_size):
                rows_N = kept_N[start : start + batch_size]
                here, last = np.searchsorted(shards, part.shard_N[rows_N[[0, -1]]])
                ahead = shards[last + 1 : last + 1 + _SHARDS_AHEAD]
                store.prefetch([shards[here : last + 1], ahead])
                yield (rows_N, part.keys(rows_N)), store.read(rows_N)
                advance(len(rows_N))
    finally:
        store.close()
