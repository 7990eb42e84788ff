"""Which samples make a batch: a pure function of (seed, position, count) on an endless stream of N
samples an epoch.

Shards are permuted per epoch, taken in windows of K shards, and samples permuted inside a window,
so that a window is what has to be near. World size, worker counts and timing never enter: a resume
at any world size goes on with exactly the next sample.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng

_SHARDS, _SAMPLES = 1, 2  # streams of the counter


class Order:
    """The window shuffle over shards of the given numbers of samples."""

    def __init__(self, samples_per_shard: NDArray[np.int64], seed: int, window_shards: int) -> None:
        self.samples_per_shard = np.asarray(samples_per_shard, np.int64)
        self.first_sample = np.cumsum(self.samples_per_shard) - self.samples_per_shard
        self.num_samples = int(self.samples_per_shard.sum())
        self.seed, self.window_shards = seed, window_shards
        # Two epochs and three windows: all that a batch across an epoch's end can touch, and its
        # successor.
        self._epoch = functools.lru_cache(maxsize=2)(self._epoch)  # type: ignore[method-assign]
        self._window = functools.lru_cache(maxsize=3)(self._window)  # type: ignore[method-assign]

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on; epoch = position // N, and each
        epoch holds every sample once."""
        parts = []
        while count > 0:
            epoch, at = divmod(position, self.num_samples)
            _, ends = self._epoch(epoch)
            window = int(np.searchsorted(ends, at, side="right"))
            window_start = int(ends[window - 1]) if window else 0
            part = self._window(epoch, window)[at - window_start : at - window_start + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """Shard numbers of the window that holds `position` and of those after it, `windows` in
        all, across epochs: what is needed next."""
        chosen: list[NDArray[np.int64]] = []
        epoch, at = divmod(position, self.num_samples)
        window = int(np.searchsorted(self._epoch(epoch)[1], at, side="right"))
        while len(chosen) < windows:
            shards, ends = self._epoch(epoch)
            chosen.append(shards[window * self.window_shards : (window + 1) * self.window_shards])
            epoch, window = (epoch, window + 1) if window + 1 < len(ends) else (epoch + 1, 0)
        return chosen

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's shard order, and where each of its windows ends."""
        shards = rng.permutation(rng.key(self.seed, _SHARDS, epoch), len(self.samples_per_shard))
        ends = np.cumsum(self.samples_per_shard[shards])
        last = (
            np.minimum(
                np.arange(self.window_shards, len(shards) + self.window_shards, self.window_shards),
                len(shards),
            )
            - 1
        )
        return shards, ends[last]

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        shards, _ = self._epoch(epoch)
        chosen = shards[window * self.window_shards : (window + 1) * self.window_shards]
        ids = np.concatenate(
            [
                np.arange(self.first_sample[s], self.first_sample[s] + self.samples_per_shard[s])
                for s in chosen
            ]
        )
        return ids[rng.permutation(rng.key(self.seed, _SAMPLES, epoch, window), len(ids))]
