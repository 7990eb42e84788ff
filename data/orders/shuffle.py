"""The shuffle over a window of shards: every sample once an epoch, for any size of data.

Shards are permuted per epoch, taken in windows of K shards, and samples permuted inside a window,
so that a window is what has to be on the node at one time.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.data.orders.order import Samples


class Shuffle:
    """An `Order` of one part: epoch = position // num_samples, and each epoch holds every sample
    once."""

    unit = 1

    def __init__(self, part: Samples, seed: int, window_shards: int) -> None:
        self.samples_per_shard = np.asarray(part.samples_per_shard, np.int64)
        self.first_sample = np.cumsum(self.samples_per_shard) - self.samples_per_shard
        self.num_samples = int(self.samples_per_shard.sum())
        self.seed, self.window_shards = seed, window_shards
        # Two epochs and three windows are all that a batch across an epoch's end can touch, and its
        # successor.
        self._cached_epoch = functools.lru_cache(maxsize=2)(self._epoch)
        self._cached_window = functools.lru_cache(maxsize=3)(self._window)

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""
        pieces = []
        while count > 0:
            epoch, at = divmod(position, self.num_samples)
            _, ends = self._cached_epoch(epoch)
            window = int(np.searchsorted(ends, at, side="right"))
            window_start = int(ends[window - 1]) if window else 0
            piece = self._cached_window(epoch, window)[at - window_start :][:count]
            pieces.append(piece)
            position, count = position + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """Shard numbers of the window that holds `position` and of those after it, `windows` in
        all, across epochs."""
        chosen: list[NDArray[np.int64]] = []
        epoch, at = divmod(position, self.num_samples)
        window = int(np.searchsorted(self._cached_epoch(epoch)[1], at, side="right"))
        while len(chosen) < windows:
            shards, ends = self._cached_epoch(epoch)
            chosen.append(shards[window * self.window_shards : (window + 1) * self.window_shards])
            epoch, window = (epoch, window + 1) if window + 1 < len(ends) else (epoch + 1, 0)
        return chosen

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's sequence of shards, and after how many samples each of its windows ends."""
        num_shards = len(self.samples_per_shard)
        shards = rng.permutation(rng.key(self.seed, rng.Stream.ORDER_SHARDS, epoch), num_shards)
        ends = np.cumsum(self.samples_per_shard[shards])
        full = np.arange(self.window_shards, num_shards + self.window_shards, self.window_shards)
        return shards, ends[np.minimum(full, num_shards) - 1]

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Ids of the window's samples in their sequence."""
        shards, _ = self._cached_epoch(epoch)
        chosen = shards[window * self.window_shards : (window + 1) * self.window_shards]
        ids = np.concatenate(
            [
                np.arange(self.first_sample[s], self.first_sample[s] + self.samples_per_shard[s])
                for s in chosen
            ]
        )
        return ids[
            rng.permutation(rng.key(self.seed, rng.Stream.ORDER_SAMPLES, epoch, window), len(ids))
        ]
