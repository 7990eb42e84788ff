"""What an order is: which samples make a batch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Order(Protocol):
    """An endless stream of samples, as a pure function of (seed, position).

    World size, worker counts and timing never enter: whoever asks for a position gets the same
    sample, so that a resume at any world size goes on with exactly the next one.
    """

    @property
    def num_samples(self) -> int:
        """Number of positions that count as an epoch."""

    @property
    def unit(self) -> int:
        """Number of positions that belong together: each group of them begins at a multiple of
        `unit`, and a mixture never tears one apart."""

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """Numbers of the shards that the stream needs from `position` on: those needed now, and
        then those of the windows after it, at most `windows` in all."""


class Samples(Protocol):
    """What an order may know of the part of a dataset that it is an order of."""

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """Number of samples in each shard."""

    @property
    def indexed_identity_N(self) -> NDArray[np.uint32]:  # noqa: N802
        """Identity of each sample as the index says, which edits do not change."""
