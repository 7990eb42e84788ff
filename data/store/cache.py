"""The shards of a remote dataset on this node: fetched in the background, in the sequence in which
the order needs them, once for all processes of the node.

`data.cache_dir` holds `shards/` (see shard_cache.py) and `datasets/`, the indexes, which the bound
on bytes does not count.
"""

import contextlib
import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.redact import redact
from manyfaces.data.store.open_file import OpenFile
from manyfaces.data.store.remote import Remote
from manyfaces.data.store.shard_cache import Patience, ShardCache, locked, shard_path

FETCHERS = 4  # one stream of an object store gives some 50 to 100 MB/s


class Shard(Protocol):
    """What the cache has to know of a shard of a manifest."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class RemoteSource:
    """Where the files of a remote dataset come from, and where they are kept on this node."""

    url: str
    folder: Path
    """The node's cache, which all datasets share."""
    limit_bytes: int
    """Most bytes of shards in it."""
    patience_s: float
    with_index: bool = True
    """Whether the index is there too, and with it what is forgotten; else only the shards are."""

    @property
    def shards(self) -> Path:
        """The folder of all fetched shards."""
        return self.folder / "shards"

    def shard_path(self, shard: Shard) -> Path:
        """Where the shard lies once it was fetched, until it is evicted."""
        return shard_path(self.shards, shard.sha256)

    def dataset(self, fingerprint: str) -> Path:
        """The folder of this dataset's index. Copies of a dataset at several URLs have one each, as
        what is forgotten may differ; with other credentials it is the same copy."""
        of_url = hashlib.sha256(redact(self.url).encode()).hexdigest()[:16]
        return self.folder / "datasets" / f"{of_url}-{fingerprint[:16]}"


def fetch_once(source: RemoteSource, remote: Remote, name: str, to: Path, sha256: str) -> None:
    """Fetch a file that all processes of the node use, unless one of them has: at `to` stand
    verified bytes or nothing. Raises `UserError`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    wait = Patience(source.folder, source.patience_s, part)
    with locked(to.with_name(f".{to.name}.lock"), wait):
        if not to.exists():
            remote.fetch(name, part, None, sha256, wait.waited_s)
            part.replace(to)


class CachedShards:
    """The shards of one remote dataset, through the node's cache. `open` opens a shard;
    `need` says which come next, so that they are fetched meanwhile. `close` ends the threads.

    `tell` gets a line about a store that goes on failing. Not for several threads at once.
    """

    def __init__(
        self,
        source: RemoteSource,
        shards: Sequence[Shard],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.source, self.shards = source, shards
        self.needs: dict[int, int] = {}
        """Shards needed soon, and how many windows from now."""
        self._asked: list[NDArray[np.int64]] = []
        self._stopping = threading.Event()
        self._remote = Remote(source.url, source.patience_s, tell, self._stopping)
        self._cache = ShardCache(
            source.shards, source.limit_bytes, source.patience_s, self._stopping
        )
        self._jobs: queue.SimpleQueue[tuple[int, Future[None]] | None] = queue.SimpleQueue()
        self._pending: dict[int, Future[None]] = {}
        self._threads: list[threading.Thread] = []

    def need(self, windows: Sequence[NDArray[np.int64]]) -> bool:
        """Fetch the shards of these windows in the background, the first window's first; returns
        whether they are others than before."""
        # This is called for every batch, and rarely with other windows.
        if len(windows) == len(self._asked) and all(map(np.array_equal, windows, self._asked)):
            return False
        self._asked = list(windows)
        needs: dict[int, int] = {}
        for distance, window in enumerate(windows):
            for shard in window.tolist():
                needs.setdefault(shard, distance)
        self.needs = needs
        self._cache.tell_needs(
            {self.shards[shard].sha256: distance for shard, distance in needs.items()}
        )
        for shard in self._pending.keys() - needs:
            self._pending.pop(shard).cancel()
        for shard in needs:
            under_way = shard in self._pending and not self._pending[shard].done()
            if not under_way and not self._path(shard).exists():
                self._pending[shard] = Future()
                self._jobs.put((shard, self._pending[shard]))
        while len(self._threads) < FETCHERS:
            self._threads.append(threading.Thread(target=self._work, name="fetcher", daemon=True))
            self._threads[-1].start()
        return True

    def open(self, shard: int) -> OpenFile:
        """Open the shard: its bytes stay readable when the file is evicted. Waits for what is not
        here yet; a file of another length than the shard's is removed and fetched anew.

        Raises `UserError` where it cannot be had: `data.store_patience_s` is counted from now, or
        from a fetch that is under way in any process of the node. Raises `OSError` where the
        cache's disk fails.
        """
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = OpenFile(self._path(shard))
                if file.size == self.shards[shard].bytes:
                    return file
                self._path(shard).unlink()
            pending = self._pending.pop(shard, None)
            if pending is not None and not pending.cancel() and not pending.done():
                pending.result()
            else:
                self._fetch(shard, None)

    def close(self) -> None:
        """End the threads, and every wait of another one in `open`."""
        self._stopping.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            # One may hang in a dead connection until a read times out; it is a daemon.
            thread.join(timeout=2)
        self._cache.close()

    def _path(self, shard: int) -> Path:
        return self.source.shard_path(self.shards[shard])

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            shard, future = job
            if self._stopping.is_set() or not future.set_running_or_notify_cancel():
                continue
            try:
                if (distance := self.needs.get(shard)) is not None:
                    self._fetch(shard, distance)
                future.set_result(None)
            except BaseException as error:
                # It is for whoever waits for this shard now; whoever comes later tries afresh.
                future.set_exception(error)

    def _fetch(self, shard: int, nearer_than: float | None) -> None:
        spec = self.shards[shard]

        def fetch(to: Path, waited_s: float) -> None:
            self._remote.fetch(spec.name, to, spec.bytes, spec.sha256, waited_s)

        self._cache.put(spec.sha256, spec.bytes, fetch, nearer_than)
