"""How far an exported network gives the embeddings of the one that it was made of.

Shapes: N images, D the embedding.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.encoder import Encoder

LEAST_COSINE = 0.9999
"""What every embedding of a float32 export has to have with the original's."""
_BATCH = 32


class Agreement(NamedTuple):
    """Cosines of the embeddings of the same images."""

    mean: float
    least: float
    images: str
    """Which images they are, for people."""

    def __str__(self) -> str:
        return f"cosine {self.mean:.6f} on average, {self.least:.6f} at least ({self.images})"


def agreement(original: Encoder, written: Encoder, images_NHWC: Tensor, told: str) -> Agreement:
    """How far both agree, each in its own precision but for autocast, which is left out. Raises
    `UserError` for embeddings that are not finite."""
    ours_ND, theirs_ND = (_embedded(each, images_NHWC) for each in (original, written))
    if not theirs_ND.isfinite().all():
        raise UserError(
            "the exported network gives embeddings that are not finite, so nothing was written; "
            "give another --precision"
        )
    cosine_N = torch.nn.functional.cosine_similarity(ours_ND, theirs_ND)
    return Agreement(float(cosine_N.mean()), float(cosine_N.min()), told)


def _embedded(encoder: Encoder, images_NHWC: Tensor) -> Tensor:
    plain = replace(encoder, autocast=False)
    parts = [plain.embed(each.to(plain.device)).cpu() for each in images_NHWC.split(_BATCH)]
    return torch.cat(parts).double()
