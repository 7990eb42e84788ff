"""A backbone by its configuration."""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manyfaces.configs import schema
from manyfaces.models.backbones import iresnet, mobilefacenet, vit
from manyfaces.models.backbones.iresnet import IResNet
from manyfaces.models.backbones.mobilefacenet import MobileFaceNet
from manyfaces.models.backbones.vit import ViT


def build(config: schema.Model, image_px: int) -> nn.Module:
    """Freshly initialised by torch's current generator; images [N, 3, image_px, image_px] to
    embeddings [N, config.embedding_dim]."""
    if isinstance(config, schema.IResNetModel):
        return IResNet(config.depth, image_px, config.embedding_dim, config.dropout)
    if isinstance(config, schema.MobileFaceNetModel):
        return MobileFaceNet(config.scale, image_px, config.embedding_dim)
    return ViT(config.size, image_px, config.embedding_dim, config.drop_path, config.mask_ratio)


def checkpoint_activations(backbone: nn.Module) -> None:
    """Keep only the blocks' inputs for backward and compute the rest again (arXiv 1604.06174);
    results stay the same to the bit."""
    for block in backbone.modules():
        if isinstance(block, iresnet.Block | mobilefacenet.Bottleneck | vit.Block):
            contexts = partial(_first_and_again, block)
            block.forward = partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False, context_fn=contexts
            )


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


def normalise(
    images_NHWC: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """uint8 RGB [N, P, P, 3] to float32 [N, 3, P, P] in [-1, 1], as InsightFace's models expect;
    into `out` where one is given.

    On a CPU fresh memory takes more time than the arithmetic: give the last batch's floats back as
    `out` once they are not needed.
    """
    images_NCHW = images_NHWC.permute(0, 3, 1, 2)
    if out is None:
        out = torch.empty(
            images_NCHW.shape,
            dtype=torch.float32,
            device=images_NHWC.device,
            memory_format=memory_format,
        )
    return out.copy_(images_NCHW).sub_(127.5).div_(127.5)
