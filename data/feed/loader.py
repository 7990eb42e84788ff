"""Order, store and decoder put together: an iterator of batches from any position, decoded ahead in
one background thread."""

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.mixture import AnyDataset, Mixture, MixtureOrder
from manyfaces.data.feed.decode import Decoder, Decoding
from manyfaces.data.orders.pk import PkOrder
from manyfaces.data.orders.shuffle import Order
from manyfaces.data.store.mapped import Stores
from manyfaces.data.transforms import augment

IGNORED = -1
_DRAWN_AHEAD = 2048  # images


@dataclass(frozen=True)
class Batch:
    """One rank's share of one global batch."""

    position: int
    """Of the global batch's first sample in the stream."""
    ids_N: NDArray[np.int64]
    images_NHWC: Tensor
    """uint8 RGB on the device."""
    labels_N: Tensor
    """int64 on the device; -1 is ignored by the loss."""


class _Begun(NamedTuple):
    position: int
    ids: NDArray[np.int64]
    usable: NDArray[np.bool_]
    """Neither forgotten nor in quarantine."""
    decoding: Decoding


class Quarantine:
    """Samples that could not be decoded, kept in `quarantine.jsonl`; they keep their place in the
    order with label -1.

    `tell` gets a line about each. `add` raises `UserError` once they are more than `max_share` of
    the dataset (ten are always allowed).
    """

    def __init__(
        self,
        file: Path,
        dataset: AnyDataset,
        max_share: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file, self.dataset, self.tell = file, dataset, tell
        self.limit = max(10, int(max_share * dataset.manifest.num_images))
        self.samples: set[int] = set()
        for line in file.read_text().splitlines() if file.exists() else []:
            with contextlib.suppress(
                ValueError
            ):  # a line may be torn if the machine stopped; its sample is then found again
                self.samples.add(json.loads(line)["sample"])

    def add(self, sample: int, position: int) -> None:
        if sample in self.samples:
            return
        self.samples.add(sample)
        name = self.dataset.name(sample)
        row = {
            "sample": sample,
            "name": name,
            "position": position,
            "reason": "not a whole, decodable JPEG",
        }
        with self.file.open("a") as file:
            file.write("\n" * (file.tell() > 0) + json.dumps(row))
        self.tell(
            f"{name} is not a whole, decodable JPEG: left out from now on ({len(self.samples)} so "
            f"far, see {self.file.name})"
        )
        if len(self.samples) > self.limit:
            remedy = "repair the shards (see quarantine.jsonl), or raise data.max_bad_share"
            raise UserError(
                f"{self.dataset.where}: more than {self.limit} samples cannot be decoded, the last "
                f"{name}; {remedy}"
            )


def build_order(
    dataset: AnyDataset, config: schema.Data, seed: int
) -> Order | PkOrder | MixtureOrder:
    """The stream of sample ids that the configuration asks for."""
    if isinstance(dataset, Mixture):
        return MixtureOrder(
            [part.dataset.samples_per_shard for part in dataset.parts],
            dataset.shares,
            seed,
            config.window_shards,
        )
    if config.order == "pk":
        return PkOrder(
            dataset.identity_N, len(dataset.manifest.shards), seed, config.images_per_identity
        )
    return Order(dataset.samples_per_shard, seed, config.window_shards)


class Loader:
    """Batches [position, end) of rank `rank` of `world_size`: its contiguous part of each global
    batch of `batch_size`.

    An error in the background is raised by the iterator. `close` ends the thread; so does leaving a
    `with` block. `tell` gets a line about a remote store that goes on failing.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        config: schema.Data,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        position: int,
        end: int,
        device: torch.device,
        quarantine: Quarantine,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.dataset, self.config, self.seed, self.batch_size, self.device = (
            dataset,
            config,
            seed,
            batch_size,
            device,
        )
        self.lo, self.hi = rank * batch_size // world_size, (rank + 1) * batch_size // world_size
        self.position, self.end, self.quarantine = position, end, quarantine
        self.order = build_order(dataset, config, seed)
        self._store, self._forgotten = Stores(dataset, tell), read_forgotten(dataset)
        self._decode = Decoder(
            config.image_px,
            self.hi - self.lo,
            augment=config.augment,
            threads=config.decode_threads,
            device=device,
        )
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(
            config.prefetch_batches
        )
        self._drawn: dict[int, augment.Choices] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
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
        self._store.ahead(self.order, position + self.lo)
        ids = self.order.ids(position + self.lo, self.hi - self.lo)
        choices = self._choices(position)
        usable = ~self._forgotten.among(self.dataset, ids) & np.array(
            [i not in self.quarantine.samples for i in ids.tolist()], bool
        )
        # A forgotten or quarantined sample's bytes are never read again: an empty blob is no JPEG,
        # so another image takes its slot.
        blobs = [np.empty(0, np.uint8)] * len(ids)
        for slot, blob in zip(np.flatnonzero(usable), self._store.read(ids[usable]), strict=True):
            blobs[slot] = blob
        return _Begun(position, ids, usable, self._decode.start(blobs, choices))

    def _choices(self, position: int) -> augment.Choices:
        """Drawn for several batches at once: a draw takes half a millisecond, of however few
        images."""
        share = self.hi - self.lo
        if position not in self._drawn:
            starts = range(
                position,
                position + max(_DRAWN_AHEAD // share, 1) * self.batch_size,
                self.batch_size,
            )
            positions = np.concatenate(
                [np.arange(start + self.lo, start + self.hi) for start in starts]
            )
            choices = augment.draw(self.config.augment, self.seed, positions, self.config.image_px)
            self._drawn = {
                start: choices[np.arange(n * share, (n + 1) * share)]
                for n, start in enumerate(starts)
            }
        return self._drawn.pop(position)

    def _finish(self, begun: _Begun) -> Batch:
        images, good = self._decode.finish(begun.decoding)
        for slot in np.flatnonzero(begun.usable & ~good):
            self.quarantine.add(int(begun.ids[slot]), begun.position + self.lo + int(slot))
        labels = np.where(good, self.dataset.labels(begun.ids), IGNORED)
        return Batch(begun.position, begun.ids, images, torch.from_numpy(labels).to(self.device))

    def _batches(self) -> Iterator[Batch]:
        """One batch is read while the one before it is decoded, so that the decoder's threads never
        wait for this one."""
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
            for batch in self._batches():
                if self._stopping.is_set():
                    return
                self._ready.put(batch)
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
