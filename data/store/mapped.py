"""Shard bytes, near or far: views into memory-mapped shards, so that reading a sample copies
nothing."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import Dataset
from manyfaces.data.dataset.mixture import AnyDataset, MixtureOrder
from manyfaces.data.orders.pk import PkOrder
from manyfaces.data.orders.shuffle import Order
from manyfaces.data.store.cache import Cache


class Store:
    """Maps shards on first use and lets the least recently used go; a map needs address space, not
    memory.

    A remote dataset's shards come through the node's cache; `tell` then gets a line about a store
    that goes on failing.
    """

    def __init__(
        self,
        dataset: Dataset,
        max_open: int = 1024,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.dataset = dataset
        self.max_open = max_open
        self._cache = (
            Cache(dataset.far, dataset.manifest.shards, tell) if dataset.far is not None else None
        )
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, samples: Iterable[int]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each sample, as read-only views. Raises `UserError` for a shard that went
        away, shrank or cannot be fetched."""
        index = self.dataset
        ids = np.fromiter(samples, np.int64)
        rows = zip(
            index.shard_N[ids].tolist(),
            index.offset_N[ids].tolist(),
            index.size_N[ids].tolist(),
            strict=True,
        )
        return [self._map(shard)[offset : offset + size] for shard, offset, size in rows]

    def ahead(self, windows: Sequence[NDArray[np.int64]]) -> None:
        """Reading goes on in these windows of shards: what lies far is fetched meanwhile."""
        if self._cache is not None and self._cache.need(windows):
            for shard in (
                self._maps.keys() - self._cache.needs
            ):  # an evicted shard takes room on the disk as long as it is mapped
                del self._maps[shard]

    def close(self) -> None:
        """End what is fetched in the background, and every wait for it."""
        if self._cache is not None:
            self._cache.close()

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        self._maps[shard] = self._local(shard) if self._cache is None else self._cache.map(shard)
        if len(self._maps) > self.max_open:
            self._maps.popitem(last=False)
        return self._maps[shard]

    def _local(self, shard: int) -> NDArray[np.uint8]:
        path, expected = self.dataset.shard_path(shard), self.dataset.manifest.shards[shard].bytes
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
    """The stores of a dataset's parts, asked as one."""

    def __init__(
        self, dataset: AnyDataset, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self._parts = [(part, Store(part.dataset, tell=tell)) for part in dataset.parts]

    def read(self, ids_N: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each sample, as `Store.read` gives them."""
        blobs = [np.empty(0, np.uint8)] * len(ids_N)
        for part, store in self._parts:
            slots = part.slots(ids_N)
            for slot, blob in zip(
                slots.tolist(), store.read(ids_N[slots] - part.first_sample), strict=True
            ):
                blobs[slot] = blob
        return blobs

    def ahead(self, order: Order | PkOrder | MixtureOrder, position: int) -> None:
        """Reading goes on at `position`: what lies far has its window and the next one fetched
        meanwhile."""
        windows = order.shards(position, 2)
        for part, store in self._parts:
            store.ahead([part.own_shards(window) for window in windows])

    def close(self) -> None:
        """End what is fetched in the background, and every wait for it."""
        for _, store in self._parts:
            store.close()
