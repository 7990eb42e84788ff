"""The shapes that a face is made of: ellipses and polygons in layers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.synthetic.colours import Colour

Array = NDArray[np.float64]


class Layer(NamedTuple):
    """Polygons [N, 2] of one colour; layers are drawn from the back to the front."""

    colour: Colour
    polygons: Sequence[Array]
    lift: float = 0.0
    """Depth beyond the dome, or from the head's middle where `dome` is 0."""
    dome: float = 1.0
    """How much of the depth of the ellipsoid under it a point has."""


_ANGLES = np.arange(16) * (np.pi / 8)
# Rounded, so that no machine's sine shows.
CIRCLE_N2: Array = np.round(np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1), 6)
SQUARE_N2: Array = np.round(CIRCLE_N2 / np.abs(CIRCLE_N2).max(1, keepdims=True), 6)


def blob(
    x: float, y: float, rx: float, ry: float, square: float = 0.0, slant: float = 0.0
) -> Array:
    """Make an ellipse around (x, y); `square` 1 makes it a rectangle and below 0 pinches it,
    `slant` raises its right end."""
    outline = CIRCLE_N2
    if square:
        outline = CIRCLE_N2 * (1 - square) + SQUARE_N2 * square
    points = outline * (rx, ry)
    points[:, 1] += y - points[:, 0] * slant
    points[:, 0] += x
    return points


def smooth(points: Array, rounds: int = 2) -> Array:
    """Round a closed polygon by Chaikin's corner cutting."""
    for _ in range(rounds):
        after = np.concatenate([points[1:], points[:1]])
        cut = [points * 0.75 + after * 0.25, points * 0.25 + after * 0.75]
        points = np.stack(cut, 1).reshape(-1, 2)
    return points


def symmetric(*right: tuple[float, float]) -> Array:
    """Make a symmetric polygon from its right half, top to bottom."""
    return np.array([*right, *((-x, y) for x, y in reversed(right))])


def mirrored(polygon: Array) -> list[Array]:
    """Return the polygon and its mirror image, for what a face has twice."""
    return [polygon, polygon * (-1, 1)]
