"""Images decoded with and without transforms, for tests."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from manyfaces.configs import schema
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.transforms.augmentation import Augmentation, Choices

Images = NDArray[np.uint8]
SQUARE = (112, 112)
SIZES = [SQUARE, (96, 64), (64, 128)]


def changed(
    blobs: Sequence[Images],
    *transforms: schema.Transform,
    image_hw: tuple[int, int] = SQUARE,
    seed: int = 5,
) -> tuple[Images, Images, Choices]:
    """The images with these transforms and without, and the choices."""
    augmentation = Augmentation(transforms, image_hw)
    choices = augmentation.draw(seed, np.arange(len(blobs)))
    device = torch.device("cpu")
    images, good = Decoder(image_hw, len(blobs), augmentation, device=device)(blobs, choices)
    assert good.all()
    plain, _ = Decoder(image_hw, len(blobs), device=device)(blobs)
    return images.numpy(), plain.numpy(), choices
