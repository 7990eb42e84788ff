"""Several datasets mixed by weight: their samples, classes and shards one part after the other, in
an order that is a pure function.

The stream goes in blocks of 1,000 slots. Of each block a part has its share, to the slot, at random
places; there it goes through its own epochs at its own pace, in the window shuffle that it has
alone. Nothing is remembered: which part has a slot follows from (seed, block), and how far the part
is from the number of blocks before.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng, schema
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import Dataset, Manifest, Part, open_dataset, refuse_small_cache
from manyfaces.data.orders.shuffle import Order

BLOCK = schema.SMALLEST_SHARE.denominator
"""Slots in which the shares are exact."""
_PARTS, _SLOTS = (
    7,
    8,
)  # streams of the counter; data.order has 1 and 2, data.augment 3 and 4, data.pk 5 and 6


@dataclass(frozen=True)
class Mixture:
    """The parts as one dataset; a class id is the part's first class + the identity's number in
    it."""

    parts: tuple[Part, ...]
    shares: tuple[Fraction, ...]
    """Of each part in the stream, 1 in all."""
    manifest: Manifest
    """What the parts' say together; its fingerprint tells other parts, shares or order of the
    parts."""

    @property
    def where(self) -> str:
        """The folders or URLs, for people."""
        return " + ".join(part.dataset.where for part in self.parts)

    def labels(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class ids of the samples."""
        labels_N = np.empty(len(ids_N), np.int64)
        for part in self.parts:
            slots = part.slots(ids_N)
            labels_N[slots] = part.first_class + part.dataset.labels(
                ids_N[slots] - part.first_sample
            )
        return labels_N

    def name(self, sample: int) -> str:
        """`DATASET/SHARD:KEY` of a sample, for people."""
        part = next(part for part in reversed(self.parts) if sample >= part.first_sample)
        return f"{part.dataset.where}/{part.dataset.name(sample - part.first_sample)}"


AnyDataset = Dataset | Mixture


def open_data(config: schema.Data) -> AnyDataset:
    """The dataset or the mixture that the configuration names. Raises `UserError` as `open_dataset`
    and `join` do."""
    datasets = [open_dataset(path, config) for path in config.paths]
    if config.order != "mixture":
        return datasets[0]
    refuse_small_cache(
        [(dataset.far, dataset.manifest) for dataset in datasets if dataset.far is not None], config
    )
    return join(datasets, config.shares)


def join(datasets: Sequence[Dataset], shares: Sequence[Fraction]) -> Mixture:
    """The datasets as one. Raises `UserError` for the same one twice, whose people would be
    strangers to themselves."""
    manifests = [dataset.manifest for dataset in datasets]
    first: dict[str, Dataset] = {}
    for dataset in datasets:
        if (same := first.setdefault(dataset.manifest.fingerprint, dataset)) is not dataset:
            raise UserError(
                f"data.mixture: {dataset.where} is the same dataset as {same.where}; give it once, "
                "with the weight of both"
            )
    counts = [(m.num_images, m.num_identities, len(m.shards)) for m in manifests]
    starts = np.cumsum([(0, 0, 0), *counts], axis=0).tolist()
    parts = tuple(Part(dataset, *start) for dataset, start in zip(datasets, starts, strict=False))
    told = "".join(f"{m.fingerprint} {share}\n" for m, share in zip(manifests, shares, strict=True))
    manifest = Manifest(
        num_images=starts[-1][0],
        num_identities=starts[-1][1],
        image_px=manifests[0].image_px if len({m.image_px for m in manifests}) == 1 else None,
        index_sha256=hashlib.sha256(told.encode()).hexdigest(),
        shards=tuple(shard for m in manifests for shard in m.shards),
    )
    return Mixture(parts, tuple(shares), manifest)


def quotas(shares: Sequence[Fraction]) -> NDArray[np.int64]:
    """Slots of each part in a block, by largest remainder; of equal remainders the earlier part's
    is rounded up."""
    exact = [share * BLOCK for share in shares]
    slots = [int(share) for share in exact]
    for part in sorted(range(len(exact)), key=lambda part: slots[part] - exact[part])[
        : BLOCK - sum(slots)
    ]:
        slots[part] += 1
    return np.array(slots)


class MixtureOrder:
    """The stream over parts with these numbers of samples in each shard; as many positions as all
    parts have samples count as an epoch."""

    def __init__(
        self,
        samples_per_shard: Sequence[NDArray[np.int64]],
        shares: Sequence[Fraction],
        seed: int,
        window_shards: int,
    ) -> None:
        self.parts = [
            Order(samples, rng.key(seed, _PARTS, n), window_shards)
            for n, samples in enumerate(samples_per_shard)
        ]
        *self.first_sample, self.num_samples = np.cumsum(
            [0, *(part.num_samples for part in self.parts)]
        ).tolist()
        *self.first_shard, _ = np.cumsum([0, *map(len, samples_per_shard)]).tolist()
        self.seed, self.quota_P = seed, quotas(shares)
        # A batch's last block is the next one's first.
        self._block = functools.lru_cache(maxsize=2)(self._block)  # type: ignore[method-assign]

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""
        block, at = divmod(position, BLOCK)
        part_N = np.concatenate(
            [self._block(b) for b in range(block, (position + count) // BLOCK + 1)]
        )[at : at + count]
        ids_N = np.empty(count, np.int64)
        for number, (part, first, before) in enumerate(
            zip(self.parts, self.first_sample, self._before(position), strict=True)
        ):
            slots = np.flatnonzero(part_N == number)
            ids_N[slots] = first + part.ids(before, len(slots))
        return ids_N

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """Shard numbers of the windows that the parts are in, and of those after them, `windows` in
        all: what is needed next."""
        begun = zip(self.parts, self.first_shard, self._before(position), strict=True)
        each = [
            [first + shards for shards in part.shards(before, windows)]
            for part, first, before in begun
        ]
        return [np.concatenate(window) for window in zip(*each, strict=True)]

    def _before(self, position: int) -> list[int]:
        """Samples of each part before the position, over all its epochs."""
        block, at = divmod(position, BLOCK)
        begun_P = np.bincount(self._block(block)[:at], minlength=len(self.parts))
        return [
            block * quota + begun
            for quota, begun in zip(self.quota_P.tolist(), begun_P.tolist(), strict=True)
        ]

    def _block(self, block: int) -> NDArray[np.int64]:
        """Which part has each slot of the block."""
        return np.repeat(np.arange(len(self.parts)), self.quota_P)[
            rng.permutation(rng.key(self.seed, _SLOTS, block), BLOCK)
        ]
