"""The family of orders: which samples make a batch."""

from fractions import Fraction
from typing import Any, ClassVar

from manyfaces.configs.kinds import Kind

WHOLE = Fraction(1)


class Order(Kind):
    """Which samples make a batch: a pure function of (seed, position).

    `target` is a `manyfaces.data.orders.order.Order` of one part of a dataset, made with the
    settings, the `part` and the `seed`; over several parts it is mixed by their shares.
    """

    folder: ClassVar[str] = "manyfaces.configs.orders"
    config_key: ClassVar[str] = "data.order"
    repeats_identities: ClassVar[bool] = False
    """Whether a batch shows several images of each of its identities, as triplets need them."""
    needs_fewer_shards: ClassVar[str] = ""
    """What lets fewer shards do, where the cache cannot hold them: the end of a sentence that has
    said to make the cache larger."""

    def num_cached_shards(self, num_shards: int) -> int:
        """How many of a part's shards a node has to hold at one time."""
        return num_shards

    def check_size(
        self, batch_size: int, num_identities: int, where: str, share: Fraction = WHOLE
    ) -> None:
        """Raise `UserError` for a batch that this order cannot draw from the dataset `where`, which
        has so many identities and this share of each batch."""

    def check(self, config: Any) -> None:
        """Raise `ValueError` for what this order does not go with."""
