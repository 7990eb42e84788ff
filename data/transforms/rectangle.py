"""Rectangles painted gray."""

from collections.abc import Mapping
from typing import Any

_GRAY = (127, 127, 127)


def paint_gray(fn: Any, image: Any, given: Mapping[str, Any]) -> Any:
    """The image with a gray rectangle at `anchor` (y, x) with sides `shape` (height, width).

    Both are in pixels; a shape of zeros leaves the image as it is.
    """
    return fn.erase(
        image, anchor=given["anchor"], shape=given["shape"], axis_names="HW", fill_value=_GRAY
    )
