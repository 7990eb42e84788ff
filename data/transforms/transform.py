"""The base classes of transforms: random changes of an image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import Stream

Drawn = dict[str, NDArray[Any]]
"""Arguments of a transform by name, one row an image."""


class Transform(ABC):
    """A random change of each image.

    What is random is drawn beforehand, as arguments of each image, from uniform numbers that are a
    pure function of (seed, position). DALI then only carries it out.
    """

    num_uniform: int = 1
    """Random numbers that it draws for an image."""
    columns: tuple[tuple[Stream, int], ...] = ()
    """Stream and column of each of its numbers, for the first of its kind in a list. The ten oldest
    transforms have them, so that runs of then go on with the same images. A new transform leaves
    this empty, and gets streams of its own."""
    keeps_size: bool = False
    """Whether an image comes out in the size in which it goes in, whatever that is. The decoder
    then need not ask each image for its size beforehand."""
    takes_any_size: bool = False
    """Whether it takes images of any size, and gives them the size that is wanted. Where it comes
    first, the decoder hands it the image as it is stored, with all its pixels."""
    works_in_place: bool = False
    """Whether `change_in_place` does the same to images in host memory, and quicker."""

    @abstractmethod
    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        """The arguments of N images of this height and width, from `num_uniform` random numbers in
        [0, 1) for each."""

    @abstractmethod
    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        """The changed image as a node of DALI's graph, uint8 RGB of `image_hw`.

        `fn` and `types` are `nvidia.dali`'s, `image` and what was drawn (`given`) are nodes. An
        `if` on a node splits the batch: only the images that it is about pay for the change.
        """

    def change_in_place(self, images_NHWC: NDArray[np.uint8], given: Drawn) -> None:
        """Change the images themselves, where `works_in_place`."""
        raise NotImplementedError

    @property
    def parts(self) -> "tuple[Transform, ...]":
        """The transforms of the list that it carries out: itself, or those that it has joined."""
        return (self,)

    def joined(self, following: "Transform") -> "Transform | None":
        """One transform that does what this one and the following one do, and costs one; None where
        there is none."""
        return None
