"""Geometric transforms: matrices from output to input pixels, of which several make one warp."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.transforms.transform import Drawn, Transform


class Geometric(Transform):
    """A transform that moves pixels, by an affine matrix."""

    @abstractmethod
    def matrix(
        self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> NDArray[np.float64]:
        """[N, 2, 3]: from (x, y, 1) in the changed image to (x, y) in the image, in pixels, counted
        from the corner of the corner pixel."""

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {"matrix": self.matrix(uniform_NU, image_hw)}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        return fn.warp_affine(
            image, matrix=given["matrix"], size=image_hw, interp_type=types.INTERP_LINEAR
        )

    def joined(self, following: Transform) -> Transform | None:
        """Two geometric transforms are one warp: pixels are interpolated once."""
        if not isinstance(following, Geometric):
            return None
        return Warp([part for each in (self, following) for part in each.geometric_parts()])

    def geometric_parts(self) -> "tuple[Geometric, ...]":
        """The geometric transforms that it carries out, in their order."""
        return (self,)


class Warp(Geometric):
    """Several geometric transforms, one after the other, in one warp."""

    def __init__(self, transforms: Sequence[Geometric]) -> None:
        self.transforms = tuple(transforms)

    @property
    def parts(self) -> tuple[Transform, ...]:
        return self.transforms

    def geometric_parts(self) -> tuple[Geometric, ...]:
        return self.transforms

    def matrix(
        self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> NDArray[np.float64]:
        first, *others = self.transforms
        matrix = first.matrix(uniform_NU[:, : first.num_uniform], image_hw)
        done = first.num_uniform
        for other in others:
            own = uniform_NU[:, done : done + other.num_uniform]
            matrix = _after(matrix, other.matrix(own, image_hw))
            done += other.num_uniform
        return matrix


def _after(first: NDArray[np.float64], then: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrices of changing an image by `first` and the result by `then`, all [N, 2, 3]. A pixel
    of the result is looked up by `then` first, as matrices go from output to input."""
    matrix = first[:, :, :2] @ then
    matrix[:, :, 2] += first[:, :, 2]
    return matrix
