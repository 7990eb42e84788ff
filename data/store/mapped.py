"""Bytes of samples as views into memory-mapped shards, so that reading one copies nothing."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.cache import CachedShards


class Store:
    """The samples of one part, by row. It maps shards on first use and lets the least recently used
    go; a map needs address space, not memory.

    A remote part's shards come through the node's cache; `tell` then gets a line about a store that
    goes on failing.
    """

    def __init__(
        self,
        part: Part,
        max_open: int = 1024,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.part = part
        self.max_open = max_open
        self._cached: CachedShards | None = None
        if part.remote is not None:
            self._cached = CachedShards(part.remote, part.manifest.shards, tell)
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, rows: Iterable[int]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each row's sample, as read-only views. Raises `UserError` for a shard that
        went away, shrank or cannot be fetched."""
        index = self.part
        rows_N = np.fromiter(rows, np.int64)
        places = zip(
            index.shard_N[rows_N].tolist(),
            index.offset_N[rows_N].tolist(),
            index.size_N[rows_N].tolist(),
            strict=True,
        )
        return [self._map(shard)[offset : offset + size] for shard, offset, size in places]

    def prefetch(self, windows: Sequence[NDArray[np.int64]]) -> None:
        """Say in which windows of shards, numbered as in the part, reading goes on: the shards of a
        remote part are fetched meanwhile."""
        if self._cached is not None and self._cached.need(windows):
            # An evicted shard takes room on the disk as long as it is mapped.
            for shard in self._maps.keys() - self._cached.needs:
                del self._maps[shard]

    def close(self) -> None:
        """End what is fetched in the background, and every wait for it."""
        if self._cached is not None:
            self._cached.close()

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        self._maps[shard] = self._local(shard) if self._cached is None else self._cached.map(shard)
        if len(self._maps) > self.max_open:
            self._maps.popitem(last=False)
        return self._maps[shard]

    def _local(self, shard: int) -> NDArray[np.uint8]:
        path, expected = self.part.shard_path(shard), self.part.manifest.shards[shard].bytes
        try:
            view: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); restore it and run the same command again to "
                "resume"
            ) from error
        if len(view) != expected:
            raise UserError(
                f"{path}: {len(view):,} bytes, expected {expected:,}; restore it and run the same "
                "command again to resume"
            )
        return np.asarray(view)


class Stores:
    """The samples of a whole dataset, by id: a `Store` for each of its parts."""

    def __init__(self, dataset: Dataset, tell: Callable[[str], None] = lambda line: None) -> None:
        self._stores = [(part, Store(part, tell=tell)) for part in dataset.parts]

    def read(self, ids_N: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each sample, as `Store.read` gives them."""
        blobs = [np.empty(0, np.uint8)] * len(ids_N)
        for part, store in self._stores:
            slots = part.slots(ids_N)
            own = store.read(ids_N[slots] - part.first_sample)
            for slot, blob in zip(slots.tolist(), own, strict=True):
                blobs[slot] = blob
        return blobs

    def prefetch(self, windows: Sequence[NDArray[np.int64]]) -> None:
        """Say in which windows of shards, numbered as in the whole dataset, reading goes on."""
        for part, store in self._stores:
            store.prefetch([part.own_shards(window) for window in windows])

    def close(self) -> None:
        """End what is fetched in the background, and every wait for it."""
        for _, store in self._stores:
            store.close()
