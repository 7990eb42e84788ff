"""What the head's step costs under each of its settings: memory, bytes, operations, and about what
time; without torch.

Letters: C classes, D dimensions, B images of a step, W workers.
"""

from collections.abc import Iterator
from itertools import product
from math import ceil, sqrt

from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.sections.head import Head

_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
_STORED_LOGIT = 2


def chunk_classes(head: Head, *, is_gpu: bool) -> int:
    """How many classes are scored at a time; on CPU no power of two: see `products.transposed`."""
    if head.chunk_classes == "auto":
        return 16384 if is_gpu else 2064
    return head.chunk_classes


def undrawn_columns(rate: float, batch_size: int, num_rows: int, num_classes: int) -> int:
    """Columns that a worker which holds `num_rows` of the classes gives to those of the batch's
    classes that were not drawn.

    Of class ids in random order mu = (1 - rate) B n / C are expected, or fewer where identities
    repeat; eight standard deviations more are exceeded in less than one step of 1e9, whichever
    classes are frequent. Ids in another order may exceed them: `models/head/sampling.py` gives such
    a step as many columns as it needs.
    """
    expected = (1 - rate) * batch_size * num_rows / num_classes
    return min(ceil(expected + 8 * sqrt(expected) + 16), batch_size, num_rows)


def scored_columns(head: Head, sizes: Sizes) -> int:
    """Columns that the fullest worker scores in a step."""
    rows = ceil(sizes.num_identities / sizes.world_size)
    if head.sample_rate >= 1:
        return rows
    # Shares of the batch are padded to one length.
    padded = ceil(sizes.batch_size / sizes.world_size) * sizes.world_size
    own = undrawn_columns(head.sample_rate, padded, rows, sizes.num_identities)
    return min(rows, ceil(head.sample_rate * rows) + own)


def head_cost(head: Head, sizes: Sizes) -> ObjectiveCost:
    """The cost of a step of this head."""
    world, batch, dim = sizes.world_size, sizes.batch_size, sizes.dim
    rows, item = ceil(sizes.num_identities / world), _ITEM[head.rows.dtype]
    centers, state = head.sub_centers, _state_bytes(head, dim)
    row_bytes = item * dim
    sampled, scored = head.sample_rate < 1, scored_columns(head, sizes)
    chunk = min(chunk_classes(head, is_gpu=sizes.is_gpu), scored)
    # A byte for each sub-centre but the first comes with each stored logit.
    stored = (_STORED_LOGIT + centers - 1) * (head.logits == "store16")
    # Scores of a chunk; its rows, their gradient and, of copies, their state; unit embeddings,
    # their gradient and a share of it.
    copies = 4 if head.rows.optimizer == "adamw" else 3
    scores = batch * chunk * (1 if centers == 1 else 3)
    workspace = 4 * (scores + copies * centers * chunk * dim + 4 * batch * dim)
    workspace += stored * batch * scored
    # Pass 1 reads rows; pass 2 reads and writes them and their state. Each score that is kept is
    # written once and read once.
    traffic = centers * scored * (3 * row_bytes + 2 * state) + 2 * stored * batch * scored
    if head.rows.lazy_decay and sampled:
        # Before pass 1 reads rows, they and their momentum are brought up to date.
        traffic += centers * scored * 2 * (row_bytes + 4 * dim * (head.rows.momentum > 0))
    # Where all rows are on the host the device has copies of those scored, each with its number,
    # and a GPU's host pinned buffers for them.
    on_host = head.placement == "host"
    whole = centers * rows * (row_bytes + state)
    copied = scored * (centers * (row_bytes + state) + 4) * on_host
    host_only = whole * sizes.is_gpu * on_host
    # Embeddings out and their gradients back, each rank's share padded to ceil(B/W).
    padded = ceil(batch / world) * world * dim * _ITEM[head.wire_dtype]
    return ObjectiveCost(
        parameters=sizes.num_identities * dim * centers,
        state_bytes=whole,
        device_bytes=whole - host_only + copied,
        host_bytes=host_only + copied * sizes.is_gpu,
        travel_bytes=2 * centers * scored * (row_bytes + state) * on_host,
        workspace_bytes=workspace,
        # Scores, in pass 2 again unless they are stored, and two gradients.
        flops=centers * (3 if stored else 4) * 2 * batch * scored * dim,
        traffic_bytes=traffic,
        wire_bytes=2 * (padded * (world - 1) // world),
    )


def _state_bytes(head: Head, dim: int) -> int:
    """Bytes that the optimiser keeps for a row."""
    if head.rows.optimizer == "rowwise":  # a length and an inverse norm
        return 8
    if head.rows.optimizer == "adamw":  # two means and a number of steps
        return 8 * dim + 4
    # Momentum, and the number of a step.
    return 4 * dim * (head.rows.momentum > 0) + 4 * head.rows.lazy_decay


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
            ("rowwise", "float8"),
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
    """The settings that alternatives differ in, for people."""
    told = [f"{head.rows.optimizer} {head.rows.dtype}", head.logits]
    if head.wire_dtype != "float32":
        told.append(f"{head.wire_dtype} sent")
    if head.placement == "host":
        told.append("rows on the host")
    return ", ".join(told)
