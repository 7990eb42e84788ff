"""Order, store and decoders put together: an iterator of batches from any position, decoded ahead
in one background thread."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.split import batch_share
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.feed.decode import Decoding
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.stream import FeedStream
from manyfaces.data.feed.view import View, main_view
from manyfaces.data.feed.view_decoder import ViewDecoder
from manyfaces.data.orders.build import build_order
from manyfaces.data.store.samples import Stores
from manyfaces.data.transforms.augmentation import MAIN

IGNORED = -1
"""The label of a sample that the loss leaves out."""
_WINDOWS_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One rank's share of one global batch."""

    position: int
    """Position in the stream of the global batch's first sample."""
    ids_N: NDArray[np.int64]
    images: dict[str, Tensor]
    """The images of each view by its name: uint8 RGB [N, height, width, 3] on the device."""
    labels_N: Tensor
    """int64 on the device; -1 is ignored by the loss."""


class _Begun(NamedTuple):
    """A batch that is being decoded."""

    position: int
    ids_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    usable_N: NDArray[np.bool_]
    """Which samples are neither forgotten nor in quarantine."""
    decoding: Decoding


class _Ready(NamedTuple):
    """A batch to be handed over."""

    batch: Batch
    made: torch.cuda.Event | None
    """When the device will have made it; None on the CPU."""


class Loader:
    """Batches [position, end) of rank `rank` of `world_size`: its contiguous part of each global
    batch of `batch_size`, each image in each of the `views` (the main one unless given).

    An error in the background is raised by the iterator. `close` ends the thread; so does leaving a
    `with` block. `decode_threads` are the decoder's on the CPU. `tell` gets a line about a remote
    store that goes on failing.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: schema.Data,
        *,
        views: Mapping[str, View] | None = None,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        position: int,
        end: int,
        device: torch.device,
        quarantine: Quarantine,
        decode_threads: int = 1,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.lo, self.hi = batch_share(batch_size, rank, world_size)
        self.position, self.end, self.quarantine = position, end, quarantine
        self.order = build_order(dataset, config.order, seed)
        self._store, self._forgotten = Stores(dataset, tell), read_forgotten(dataset)
        views = {MAIN: main_view(config)} if views is None else views
        self._decoder = ViewDecoder(
            views,
            seed=seed,
            batch_size=batch_size,
            share=(self.lo, self.hi),
            threads=decode_threads,
            device=device,
        )
        self._stream = FeedStream(device)
        self._ready: queue.Queue[_Ready | BaseException | None] = queue.Queue(
            config.prefetch_batches
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch = item.batch
            self._stream.take([*batch.images.values(), batch.labels_N], item.made)
            yield batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the background thread, and wait for its end."""
        self._stopping.set()
        self._store.close()
        while self._thread.is_alive():  # the producer may wait for a free place
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _begin(self, position: int) -> _Begun:
        """Read and start to decode this rank's share of the global batch that begins at
        `position`."""
        first = position + self.lo
        self._store.prefetch(self.order.shards(first, _WINDOWS_AHEAD))
        ids_N = self.order.ids(first, self.hi - self.lo)
        labels_N = self.dataset.labels(ids_N)
        usable_N = ~self._forgotten.mask(ids_N, labels_N) & np.array(
            [i not in self.quarantine.samples for i in ids_N.tolist()], bool
        )
        # A forgotten or quarantined sample's bytes are never read again: an empty blob is no JPEG,
        # so another image takes its slot.
        blobs = [np.empty(0, np.uint8)] * len(ids_N)
        read = self._store.read(ids_N[usable_N])
        for slot, blob in zip(np.flatnonzero(usable_N), read, strict=True):
            blobs[slot] = blob
        decoding = self._decoder.start(blobs, position)
        return _Begun(position, ids_N, labels_N, usable_N, decoding)

    def _finish(self, begun: _Begun) -> Batch:
        """Collect the images; a sample that cannot be decoded goes to quarantine."""
        images, good_N = self._decoder.finish(begun.decoding)
        for slot in np.flatnonzero(begun.usable_N & ~good_N).tolist():
            self.quarantine.add(int(begun.ids_N[slot]), begun.position + self.lo + slot)
        labels = torch.from_numpy(np.where(good_N, begun.labels_N, IGNORED)).to(self.device)
        return Batch(begun.position, begun.ids_N, images, labels)

    def _batches(self) -> Iterator[Batch]:
        """Yields all batches. One is read while the one before it is decoded, so that the decoder's
        threads never wait for this one."""
        begun: _Begun | None = None
        for position in range(self.position, self.end, self.batch_size):
            try:
                following = self._begin(position)
            except BaseException:
                if begun is not None:  # it can still be trained on
                    yield self._finish(begun)
                raise
            if begun is not None:
                yield self._finish(begun)
            begun = following
        if begun is not None:
            yield self._finish(begun)

    def _produce(self) -> None:
        try:
            with self._stream():
                for batch in self._batches():
                    if self._stopping.is_set():
                        return
                    self._ready.put(_Ready(batch, self._stream.mark()))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
