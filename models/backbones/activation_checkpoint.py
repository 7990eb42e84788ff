"""Activation checkpointing: keep only the inputs of a network's blocks for the backward pass, and
compute what is inside them again (arXiv 1604.06174)."""

import contextlib
from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import blocks_of


def checkpoint_activations(network: nn.Module) -> None:
    """Checkpoint each block that the backbones in `network` name; results stay the same to the bit.

    Raises `UserError` for a network that names none.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise UserError(
            "engine.activation_checkpointing: the network names no blocks; derive it from "
            "manyfaces.models.backbones.backbone.Backbone and return them from list_blocks, or set "
            "engine.activation_checkpointing=false"
        )
    for block in blocks:
        contexts = partial(_first_and_again, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _first_and_again(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward pass sees the same batch: BatchNorm must not count it twice."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked -= 1
