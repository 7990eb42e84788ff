"""Order shuffle: every sample once an epoch."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from manyfaces.configs.orders.order import Order


class Shuffle(Order):
    """Every sample exactly once an epoch, shuffled over a window of shards: for any size of
    data."""

    kind: Literal["shuffle"] = "shuffle"
    target: ClassVar[str] = "manyfaces.data.orders.shuffle.Shuffle"
    needs_fewer_shards: ClassVar[str] = ", or lower data.order.window_shards"
    window_shards: PositiveInt = 16
    """Shards shuffled together: what a node has to hold at one time, of each part of a mixture."""

    def num_cached_shards(self, num_shards: int) -> int:
        return min(self.window_shards, num_shards)
