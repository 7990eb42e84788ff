"""Bytes of samples, read from shards that stay open."""

import contextlib
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.cache import CachedShards
from manyfaces.data.store.open_file import OpenFile

_MOST_OPEN = 1024
_FILES = 4 * _MOST_OPEN
"""What a process may open where the system lets it, so that a store may have `_MOST_OPEN`."""


class Store:
    """The samples of one part, by row. It opens shards on first use, and of more than `max_open`
    closes that which was not read for the longest time; by default it takes a quarter of the files
    that this process may open, and at most 1,024.

    A remote part's shards come through the node's cache; `tell` then gets a line about a store that
    goes on failing.
    """

    def __init__(
        self,
        part: Part,
        max_open: int | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.part = part
        self.max_open = max_open or _files_at_a_time()
        self._cached: CachedShards | None = None
        if part.remote is not None:
            self._cached = CachedShards(part.remote, part.manifest.shards, tell)
        self._files: OrderedDict[int, OpenFile] = OrderedDict()

    def read(self, rows: Iterable[int]) -> list[NDArray[np.uint8]]:
        """JPEG bytes of each row's sample, read-only. Raises `UserError` naming shard and sample
        for a shard that went away, shrank or cannot be fetched, and for a disk that fails."""
        index = self.part
        rows_N = np.fromiter(rows, np.int64)
        places = zip(
            rows_N.tolist(),
            index.shard_N[rows_N].tolist(),
            index.offset_N[rows_N].tolist(),
            index.size_N[rows_N].tolist(),
            strict=True,
        )
        blobs = []
        for row, shard, offset, size in places:
            try:
                file = self._files.get(shard) or self._open(shard)
                self._files.move_to_end(shard)
                body = file.read(offset, size)
            except OSError as error:
                raise self._lost(row, shard, error.strerror or str(error)) from error
            if len(body) < size:
                why = f"cut short: {len(body):,} of its {size:,} bytes are there"
                raise self._lost(row, shard, why)
            blobs.append(np.frombuffer(body, np.uint8))
        return blobs

    def prefetch(self, windows: Sequence[NDArray[np.int64]]) -> None:
        """Say in which windows of shards, numbered as in the part, reading goes on: the shards of a
        remote part are fetched meanwhile."""
        if self._cached is not None and self._cached.need(windows):
            # An evicted shard takes room on the disk as long as it is open.
            for shard in self._files.keys() - self._cached.needs:
                del self._files[shard]

    def close(self) -> None:
        """End what is fetched in the background, and every wait for it; close the shards."""
        if self._cached is not None:
            self._cached.close()
        self._files.clear()

    def _open(self, shard: int) -> OpenFile:
        file = self._local(shard) if self._cached is None else self._cached.open(shard)
        self._files[shard] = file
        if len(self._files) > self.max_open:
            self._files.popitem(last=False)
        return file

    def _local(self, shard: int) -> OpenFile:
        path, expected = self.part.shard_path(shard), self.part.manifest.shards[shard].bytes
        try:
            file = OpenFile(path)
            found = file.size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {self._remedy}") from error
        if found != expected:
            raise UserError(f"{path}: {found:,} bytes, expected {expected:,}; {self._remedy}")
        return file

    def _lost(self, row: int, shard: int, why: str) -> UserError:
        """What to raise for a sample that cannot be read any more."""
        path, name = self.part.shard_path(shard), self.part.name(row)
        return UserError(f"{path}: cannot be read at sample {name} ({why}); {self._remedy}")

    @property
    def _remedy(self) -> str:
        again = "run the same command again to resume"
        if self._cached is None:
            return f"restore it and {again}"
        return f"look after the cache's disk and {again}; a shard that is not there is fetched anew"


def _files_at_a_time() -> int:
    """How many files a store may keep open: the rest of this process needs some too.

    Shells usually allow 1,024 to a process. A quarter of that is soon too few for orders that draw
    from all shards, where nearly every read would open one; the process raises it as far as the
    system lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some containers forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    allowed = _FILES if soft == resource.RLIM_INFINITY else soft
    return max(min(_MOST_OPEN, allowed // 4), 1)


class Stores:
    """The samples of a whole dataset, by id: a `Store` for each of its parts."""

    def __init__(self, dataset: Dataset, tell: Callable[[str], None] = lambda line: None) -> None:
        max_open = max(_files_at_a_time() // len(dataset.parts), 1)
        self._stores = [(part, Store(part, max_open, tell)) for part in dataset.parts]

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
