"""Any order over several parts, mixed by their shares.

The stream goes in blocks of 1,000 slots, and a slot holds one unit of a part's own order: one
sample, or K images of an identity. Of each block a part has its share, to the slot, at random
places; there it goes through its own epochs at its own pace, in the order that it has alone.
Nothing is remembered: which part has a slot follows from (seed, block), and how far the part is
from the number of blocks before."""

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.sections.data import SMALLEST_SHARE
from manyfaces.data.orders.order import Order

BLOCK = SMALLEST_SHARE.denominator
"""Number of slots in which the shares are exact."""


def part_seed(seed: int, part: int) -> int:
    """The seed of a part's own order in the mixture of this seed."""
    return rng.key(seed, rng.Stream.MIXTURE_PARTS, part)


def quotas(shares: Sequence[Fraction]) -> NDArray[np.int64]:
    """Number of slots of each part in a block, by largest remainder; of equal remainders the
    earlier part's is rounded up."""
    exact = [share * BLOCK for share in shares]
    slots = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: slots[part] - exact[part])
    for part in by_remainder[: BLOCK - sum(slots)]:
        slots[part] += 1
    return np.array(slots)


class Mixed:
    """An `Order` over several parts, which begin at these sample ids and shard numbers of the whole
    dataset. As many positions as all parts have samples count as an epoch."""

    def __init__(
        self,
        orders: Sequence[Order],
        shares: Sequence[Fraction],
        seed: int,
        first_samples: Sequence[int],
        first_shards: Sequence[int],
    ) -> None:
        self.orders, self.first_samples, self.first_shards = orders, first_samples, first_shards
        self.num_samples = sum(order.num_samples for order in orders)
        (self.unit,) = {order.unit for order in orders}
        self.seed, self.quota_P = seed, quotas(shares)
        # A batch's last block is the next one's first.
        self._cached_block = functools.lru_cache(maxsize=2)(self._block)

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""
        first_slot, cut = divmod(position, self.unit)
        num_slots = -(-(cut + count) // self.unit)
        part_S = self._parts(first_slot, num_slots)
        ids_SK = np.empty((num_slots, self.unit), np.int64)
        for number, before in enumerate(self._before(first_slot)):
            own_S = np.flatnonzero(part_S == number)
            own = self.orders[number].ids(before * self.unit, len(own_S) * self.unit)
            ids_SK[own_S] = self.first_samples[number] + own.reshape(-1, self.unit)
        return ids_SK.reshape(-1)[cut : cut + count]

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """Shard numbers of the windows that the parts are in, together, and of those after them."""
        each = [
            [first_shard + shards for shards in order.shards(before * self.unit, windows)]
            for order, first_shard, before in zip(
                self.orders, self.first_shards, self._before(position // self.unit), strict=True
            )
        ]
        return [np.concatenate(window) for window in zip(*each, strict=True)]

    def _parts(self, slot: int, count: int) -> NDArray[np.int64]:
        """Which part has each of `count` slots from `slot` on."""
        block, at = divmod(slot, BLOCK)
        blocks = range(block, (slot + count) // BLOCK + 1)
        return np.concatenate([self._cached_block(b) for b in blocks])[at : at + count]

    def _before(self, slot: int) -> list[int]:
        """Number of slots of each part before this one, over all its epochs."""
        block, at = divmod(slot, BLOCK)
        begun_P = np.bincount(self._cached_block(block)[:at], minlength=len(self.orders))
        return [
            block * quota + begun
            for quota, begun in zip(self.quota_P.tolist(), begun_P.tolist(), strict=True)
        ]

    def _block(self, block: int) -> NDArray[np.int64]:
        """Which part has each slot of the block."""
        return np.repeat(np.arange(len(self.orders)), self.quota_P)[
            rng.permutation(rng.key(self.seed, rng.Stream.MIXTURE_SLOTS, block), BLOCK)
        ]
