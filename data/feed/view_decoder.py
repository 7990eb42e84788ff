"""The images of one rank's batches as views show them: augmentations drawn, JPEG bytes decoded once
for all views."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.data.feed.decode import Decoding, ViewsDecoder
from manyfaces.data.feed.view import View
from manyfaces.data.transforms.augmentation import Augmentation, Choices

_DRAWN_AHEAD = 2048  # images


class ViewDecoder:
    """Decodes the samples [lo, hi) of each global batch of `batch_size` for the views, by their
    names, whose augmentations are drawn from `seed`. `start` begins one batch in the background,
    `finish` gives its images."""

    def __init__(
        self,
        views: Mapping[str, View],
        *,
        seed: int,
        batch_size: int,
        share: tuple[int, int],
        threads: int,
        device: torch.device,
    ) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.lo, self.hi = share
        self._augmentations = {
            name: Augmentation(view.augment, view.image_hw) for name, view in views.items()
        }
        self._decode = ViewsDecoder(
            list(self._augmentations.values()),
            self.hi - self.lo,
            threads=threads,
            device=device,
        )
        self._drawn: dict[int, list[Choices]] = {}

    def start(self, blobs: Sequence[NDArray[np.uint8]], position: int) -> Decoding:
        """Begin to decode the share of the global batch that begins at `position`."""
        return self._decode.start(blobs, self._choices(position))

    def finish(self, decoding: Decoding) -> tuple[dict[str, Tensor], NDArray[np.bool_]]:
        """The images of each view, uint8 [N, height, width, 3] on the device, and which of them are
        real, in the sequence in which the batches were started."""
        views, good_N = self._decode.finish(decoding)
        return dict(zip(self._augmentations, views, strict=True)), good_N

    def _choices(self, position: int) -> list[Choices]:
        """The random choices of each view for the share of the global batch at `position`. They are
        drawn for several batches at once, as a draw takes half a millisecond however few images it
        is for."""
        if position not in self._drawn:
            share = self.hi - self.lo
            num_batches = max(_DRAWN_AHEAD // share, 1)
            starts = range(position, position + num_batches * self.batch_size, self.batch_size)
            positions = np.concatenate(
                [np.arange(start + self.lo, start + self.hi) for start in starts]
            )
            drawn = [
                augmentation.draw(self.seed, positions, name)
                for name, augmentation in self._augmentations.items()
            ]
            self._drawn = {
                start: [each[np.arange(n * share, (n + 1) * share)] for each in drawn]
                for n, start in enumerate(starts)
            }
        return self._drawn.pop(position)
