"""Objective triplet: nearer to one's own than to others."""

from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes

_ITEM = {"float32": 4, "bfloat16": 2}
_HELD_DISTANCES = 1 << 19


class Triplet(Objective):
    """Triplet loss over the whole batch, alone or beside a margin softmax as person
    re-identification has it; it needs several images of an identity in a batch
    (`data.order=pk`)."""

    kind: Literal["triplet"] = "triplet"
    target: ClassVar[str] = "manyfaces.train.objectives.triplet.Triplet"

    mining: Literal["batch_hard", "semi_hard"] = "batch_hard"
    """`batch_hard` takes the farthest positive and the nearest negative of each anchor (arXiv
    1703.07737), `semi_hard` the nearest negative that is farther away than the positive, of each
    anchor and positive (FaceNet, arXiv 1503.03832)."""
    margin: Annotated[float, Field(ge=0, le=4)] | Literal["soft"] = 0.3
    """How much farther away a negative has to be than a positive, in the unit of `distance`;
    `soft` is softplus, without a margin."""
    distance: Literal["euclidean", "squared"] = "euclidean"
    """The distance between unit embeddings (0 to 2), or its square (0 to 4), which is FaceNet's."""
    wire_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which embeddings and their gradients travel between ranks."""

    def arguments(self) -> dict[str, Any]:
        return {"settings": self}

    def exchanged(self, config: Any) -> tuple[str, str]:
        return self.branch, self.wire_dtype

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        batch, dim, share = sizes.batch_size, sizes.dim, ceil(sizes.batch_size / sizes.world_size)
        # float64: embeddings, their gradient, and some twelve matrices of a block of distances.
        workspace = 8 * (2 * batch * dim + 12 * min(_HELD_DISTANCES, batch * share))
        padded = share * sizes.world_size * dim * _ITEM[self.wire_dtype]
        sent = 2 * (padded * (sizes.world_size - 1) // sizes.world_size)
        return ObjectiveCost(workspace_bytes=workspace, wire_bytes=sent)

    def check(self, config: Any) -> None:
        order = config.data.order
        if not order.repeats_identities:
            raise ValueError(
                "objective triplet needs several images of each identity, and data.order "
                f"{order.word()} seldom shows an identity twice in a batch; set data.order=pk, or "
                "remove the triplet loss"
            )
