"""The images of one rank's batches as one view shows them: augmentations drawn, JPEG bytes
decoded."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.data.feed.decode import Decoder, Decoding
from manyfaces.data.feed.view import View
from manyfaces.data.transforms.augmentation import Augmentation, Choices

_DRAWN_AHEAD = 2048  # images


class ViewDecoder:
    """Decodes the samples [lo, hi) of each global batch of `batch_size` for the view of this name,
    whose augmentations are drawn from `seed`. `start` begins one batch in the background, `finish`
    gives its images."""

    def __init__(
        self,
        view: View,
        name: str,
        *,
        seed: int,
        batch_size: int,
        share: tuple[int, int],
        threads: int,
        device: torch.device,
    ) -> None:
        self.name, self.seed, self.batch_size = name, seed, batch_size
        self.lo, self.hi = share
        self._augmentation = Augmentation(view.augment, view.image_hw)
        self._decode = Decoder(
            view.image_hw,
            self.hi - self.lo,
            self._augmentation,
            threads=threads,
            device=device,
        )
        self._drawn: dict[int, Choices] = {}

    def start(self, blobs: Sequence[NDArray[np.uint8]], position: int) -> Decoding:
        """Begin to decode the share of the global batch that begins at `position`."""
        return self._decode.start(blobs, self._choices(position))

    def finish(self, decoding: Decoding) -> tuple[Tensor, NDArray[np.bool_]]:
        """Images, uint8 [N, height, width, 3] on the device, and which of them are real, in the
        sequence in which the batches were started."""
        return self._decode.finish(decoding)

    def _choices(self, position: int) -> Choices:
        """The random choices for the share of the global batch at `position`. They are drawn for
        several batches at once, as a draw takes half a millisecond however few images it is for."""
        if position not in self._drawn:
            share = self.hi - self.lo
            num_batches = max(_DRAWN_AHEAD // share, 1)
            starts = range(position, position + num_batches * self.batch_size, self.batch_size)
            positions = np.concatenate(
                [np.arange(start + self.lo, start + self.hi) for start in starts]
            )
            choices = self._augmentation.draw(self.seed, positions, self.name)
            self._drawn = {
                start: choices[np.arange(n * share, (n + 1) * share)]
                for n, start in enumerate(starts)
            }
        return self._drawn.pop(position)
