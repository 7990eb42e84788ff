"""Shard bytes: views into memory-mapped shards, so that reading a sample copies nothing."""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.index import Dataset


class Store:
    """Maps shards on first use and lets the least recently used go; a map needs address space, not memory."""

    def __init__(self, dataset: Dataset, max_open: int = 1024) -> None:
        self.dataset = dataset
        self.max_open = max_open
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, samples: Iterable[int]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each sample, as read-only views. Raises `UserError` for a shard that went away or shrank."""
        index = self.dataset
        ids = np.fromiter(samples, np.int64)
        rows = zip(index.shard_N[ids].tolist(), index.offset_N[ids].tolist(), index.size_N[ids].tolist(), strict=True)
        return [self._map(shard)[offset : offset + size] for shard, offset, size in rows]

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        path, expected = self.dataset.shard_path(shard), self.dataset.manifest.shards[shard].bytes
        try:
            view: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); restore it and run the same command again to resume") from error
        if len(view) != expected:
            raise UserError(f"{path}: {len(view):,} bytes, expected {expected:,}; restore it and run the same command again to resume")
        self._maps[shard] = np.asarray(view)
        if len(self._maps) > self.max_open:
            self._maps.popitem(last=False)
        return self._maps[shard]
