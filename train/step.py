"""One training step: the inner loop, from uint8 images to updated weights and class rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.data.feed.loader import Batch
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.engine import Engine, NotFiniteError

_STREAM = 31  # of the counter: dropout, stochastic depth and token masking


@dataclass(frozen=True)
class StepResult:
    loss: Tensor
    """Mean over the valid labels of the global batch; on the device."""
    grad_norm: float
    """Of the backbone, before clipping."""
    last: bool
    """Some rank has no further batch."""


def train_step(
    engine: Engine,
    head: PartialFC,
    batch: Batch,
    *,
    lr: float,
    batch_size: int,
    seed: int,
    rank: int,
    last: bool = False,
) -> StepResult:
    """`last` is told to all ranks. Raises `NotFiniteError` on every rank alike; then neither
    weights nor rows of this step may be kept."""
    torch.manual_seed(rng.key(seed, _STREAM, batch.position, rank) >> 1)
    head.prefetch(batch.position, batch_size)
    embeddings_ND = engine.embed(batch.images_NHWC)
    head_step = head.step(
        embeddings_ND,
        batch.labels_N,
        lr=lr,
        position=batch.position,
        batch_size=batch_size,
        last=last,
    )
    engine.backward(embeddings_ND, head_step.d_embeddings_ND)
    grad_norm = engine.step(lr)
    if not bool(head_step.finite):
        raise NotFiniteError(f"loss {float(head_step.loss)}")
    assert bool(head_step.one_owner), "a label of this batch has no class row, or several"
    return StepResult(head_step.loss, grad_norm, bool(head_step.last))
