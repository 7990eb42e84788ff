"""Order pk: P identities x K images a batch."""

from fractions import Fraction
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.errors import UserError
from manyfaces.configs.orders.order import WHOLE, Order


class PK(Order):
    """P identities x K images a batch, for triplet losses and balanced training: every identity
    once a round. It resumes anywhere, at any number of workers; each node has to hold all
    shards."""

    kind: Literal["pk"] = "pk"
    target: ClassVar[str] = "manyfaces.data.orders.pk.PK"
    repeats_identities: ClassVar[bool] = True
    needs_fewer_shards: ClassVar[str] = ", or another data.order: pk needs all shards"
    images_per_identity: Annotated[int, Field(ge=2)] = 4
    """K; P is train.batch_size / K."""

    def check_size(
        self, batch_size: int, num_identities: int, where: str, share: Fraction = WHOLE
    ) -> None:
        people = batch_size // self.images_per_identity
        needed = ceil(share * people)
        if needed <= num_identities:
            return
        batch = f"data.order pk: a batch of {people} x {self.images_per_identity}"
        if share == WHOLE:
            raise UserError(
                f"{batch} needs {people} identities, {where} has {num_identities}; lower "
                "train.batch_size"
            )
        raise UserError(
            f"{batch} takes {needed} identities from {where}, which has {num_identities}; lower "
            "train.batch_size, or its weight in data.mixture"
        )

    def check(self, config: Any) -> None:
        if config.train.batch_size % self.images_per_identity:
            raise ValueError(
                f"train.batch_size {config.train.batch_size} is no multiple of "
                f"data.order.images_per_identity {self.images_per_identity}; data.order pk needs it"
            )
