"""What the head's step costs under each of its settings: memory, bytes, operations, and about what
time; without torch.

Letters as in `plan.py`: C classes, D dimensions, B images of a step, W workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil

from manyfaces.configs.schema import Head

_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_LOGIT = 2


@dataclass(frozen=True)
class Machine:
    """What a worker has, by order of magnitude: figures to compare settings by, not to promise
    times."""

    name: str
    is_gpu: bool
    memory_bytes: float
    flops: float
    """A second, of matrix products."""
    bandwidth: float
    """Bytes a second from memory."""

    def seconds(self, cost: "HeadCost") -> float:
        return cost.flops / self.flops + cost.traffic_bytes / self.bandwidth


@dataclass(frozen=True)
class HeadCost:
    """Of one worker, the fullest, and one step."""

    state_bytes: int
    """Rows and what their optimiser keeps, wherever they live."""
    device_bytes: int
    """Of these, or of copies of the chosen ones, in the memory of the device; on CPU that of the
    host, and all of it."""
    host_bytes: int
    """Beside a GPU."""
    travel_bytes: int
    """Of chosen rows and their state, to the device and back, beside the backbone."""
    workspace_bytes: int
    flops: int
    traffic_bytes: int
    """Of rows, their state and stored logits, from and to memory."""
    wire_bytes: int
    """Sent."""


def chunk_classes(head: Head, *, is_gpu: bool) -> int:
    """Classes scored at a time. On CPU no power of two: see `products.transposed`."""
    if head.chunk_classes == "auto":
        return 16384 if is_gpu else 2064
    return head.chunk_classes


def head_cost(
    head: Head, num_identities: int, dim: int, batch: int, world_size: int, *, is_gpu: bool
) -> HeadCost:
    """The cost of a step of this head."""
    rows, item, wide = ceil(num_identities / world_size), _ITEM[head.rows.dtype], dim
    planes, walked = head.sub_centers, head.margin.kind != "none"
    dim = dim if walked else 1
    momentum = 4 * dim * (head.rows.momentum > 0)
    # Momentum, and the number of a step; a length and an inverse norm; or two means and a number of
    # steps.
    kept = {"sgd": momentum + 4 * head.rows.lazy_decay, "rowwise": 8, "adamw": 8 * dim + 4}[
        head.rows.optimizer
    ]
    # The drawn share, and a column for each of the batch's own classes wherever they live
    # (`models/sampling.py`: nothing waits for a GPU).
    scored = min(rows, ceil(head.sample_rate * rows) + batch * (head.sample_rate < 1)) * walked
    chunk = min(chunk_classes(head, is_gpu=is_gpu), scored)
    stored = (_STORED_LOGIT + planes - 1) * (
        head.logits == "store16"
    )  # and a byte for each sub-centre but the first
    # Scores of a chunk; its rows, their gradient and, of copies, their state; unit embeddings,
    # their gradient and a share of it.
    copies = 4 if head.rows.optimizer == "adamw" else 3
    scores = batch * chunk * (1 if planes == 1 else 3)
    workspace = (
        4 * (scores + copies * planes * chunk * dim + 4 * batch * wide) + stored * batch * scored
    )
    if (
        head.triplet is not None
    ):  # float64: embeddings, their gradient, and some twelve matrices of a block of distances
        workspace += 8 * (2 * batch * wide + 12 * min(2**19, batch * ceil(batch / world_size)))
    # Walk 1 reads rows; walk 2 reads and writes them and their state. Each score that is kept is
    # written once and read once.
    traffic = planes * scored * (3 * item * dim + 2 * kept) + 2 * stored * batch * scored
    if (
        head.rows.lazy_decay and head.sample_rate < 1
    ):  # before walk 1 reads rows, they and their momentum are brought up to date
        traffic += planes * scored * 2 * (item * dim + momentum)
    # Where all rows are on the host the device has copies of those scored, each with its number,
    # and a GPU's host pinned buffers for them.
    state, copied, beside = planes * rows * (item * dim + kept), 0, 0
    if head.placement == "host":
        copied, beside = scored * (planes * (item * dim + kept) + 4), state * is_gpu
    # Embeddings out and their gradients back, each rank's share padded to ceil(B/W).
    padded = ceil(batch / world_size) * world_size * wide * _ITEM[head.wire_dtype]
    return HeadCost(
        state_bytes=state,
        device_bytes=state - beside + copied,
        host_bytes=beside + copied * is_gpu,
        travel_bytes=2 * planes * scored * (item * dim + kept) * (head.placement == "host"),
        workspace_bytes=workspace,
        flops=planes
        * (3 if stored else 4)
        * 2
        * batch
        * scored
        * dim,  # scores, in walk 2 again unless stored, and two gradients
        traffic_bytes=traffic,
        wire_bytes=2 * (padded * (world_size - 1) // world_size),
    )


def alternatives(head: Head, *, kernels: bool, is_gpu: bool, world_size: int) -> Iterator[Head]:
    """The settings worth choosing from, this head's own first. Stored logits are not where Triton's
    kernels run: they switch those off."""
    yield head
    if world_size > 1:
        yield head.model_copy(
            update={"wire_dtype": "float32" if head.wire_dtype == "bfloat16" else "bfloat16"}
        )
    if is_gpu and head.sample_rate < 1:
        yield head.model_copy(
            update={"placement": "device" if head.placement == "host" else "host"}
        )
    for (optimizer, dtype), logits in product(
        [
            ("sgd", "float32"),
            ("sgd", "bfloat16"),
            ("sgd", "float16"),
            ("rowwise", "float32"),
            ("rowwise", "float16"),
            ("rowwise", "bfloat16"),
            ("adamw", "float32"),
        ],
        ["recompute", "store16"],
    ):
        if kernels and logits == "store16":
            continue
        rows = {
            "optimizer": optimizer,
            "dtype": dtype,
            "lazy_decay": head.rows.lazy_decay and optimizer == "sgd",
        }
        other = head.model_copy(
            update={"logits": logits, "rows": head.rows.model_copy(update=rows)}
        )
        if other != head:
            yield other


def describe(head: Head) -> str:
    more = [f"{head.wire_dtype} sent"] * (head.wire_dtype != "float32") + ["rows on the host"] * (
        head.placement == "host"
    )
    return ", ".join([f"{head.rows.optimizer} {head.rows.dtype}", head.logits, *more])
