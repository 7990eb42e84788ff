"""Images side by side as one picture, with lines of text beneath each."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from manyfaces.configs.errors import UserError

LINE_PX = 14
"""Height of a line of text."""
_FONT_PX = 11
_WHITE, _BLACK = 255, 0


def refuse_no_picture(out: Path) -> None:
    """Raise `UserError` for a name that no picture can be written under."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{out}: an image is written; give a name that ends in .png or .jpg")


def write_grid(
    tiles: NDArray[np.uint8],
    columns: int,
    out: Path,
    captions: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write images of one size, uint8 RGB [N, height, width, 3], row by row as one picture, white
    where none is left.

    `captions` has the lines of text that stand beneath each image, as many for each; what is wider
    than the image is cut off. Raises `UserError` where the picture cannot be written.
    """
    if captions is not None:
        tiles = np.stack(
            [_captioned(tile, lines) for tile, lines in zip(tiles, captions, strict=True)]
        )
    _, height, width, _ = tiles.shape
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * columns, height, width, 3), _WHITE, np.uint8)
    grid[: len(tiles)] = tiles
    by_row = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    picture = by_row.reshape(rows * height, columns * width, 3)
    if not cv2.imwrite(str(out), picture[:, :, ::-1]):
        raise UserError(f"{out}: cannot be written; is its folder there?")


def _captioned(tile: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    height, width, _ = tile.shape
    picture = Image.new("RGB", (width, height + len(lines) * LINE_PX), (_WHITE,) * 3)
    picture.paste(Image.fromarray(tile))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_PX)
    for number, line in enumerate(lines):
        draw.text((2, height + number * LINE_PX), line, fill=(_BLACK,) * 3, font=font)
    return np.asarray(picture)
