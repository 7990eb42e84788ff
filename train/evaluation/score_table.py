"""Scores of images that another program has worked out, from a CSV."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

IMAGE = "image"
"""The column that says which image a row is about."""


def read_scores(
    path: str, num_images: int, wanted: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The columns among `wanted` of a CSV that has a column `image`, numbers from 0 to
    `num_images` - 1, each once in any order: the score of each image, [N], by the column's name.

    Raises `UserError`, with the line, for a file that cannot be read or has none of the columns,
    for what is no number, and for an image that is there twice or not at all.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name for name in wanted if name in (reader.fieldnames or ())]
            if IMAGE not in (reader.fieldnames or ()) or not columns:
                raise UserError(
                    f"{path}: its columns are {', '.join(reader.fieldnames or ()) or 'none'}; "
                    f"expected {IMAGE} and one of {', '.join(wanted)} in the first line"
                )
            found: dict[str, NDArray[np.float64]] = {
                name: np.full(num_images, np.nan) for name in columns
            }
            for row in reader:
                where = f"{path}:{reader.line_num}"
                image = _image(row[IMAGE], num_images, where)
                for name, scores_N in found.items():
                    if not math.isnan(scores_N[image]):
                        raise UserError(f"{where}: image {image} is there twice; leave one out")
                    scores_N[image] = _score(row[name], name, where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    missing = np.flatnonzero(np.isnan(found[columns[0]]))
    if len(missing):
        raise UserError(
            f"{path}: has no line for image {missing[0]}, and for {len(missing)} of {num_images}; "
            "give one for each image of the set"
        )
    return found


def _image(text: str | None, num_images: int, where: str) -> int:
    if text is not None and text.strip().isdecimal() and int(text) < num_images:
        return int(text)
    raise UserError(f"{where}: {text!r} is no image; expected a number from 0 to {num_images - 1}")


def _score(text: str | None, name: str, where: str) -> float:
    try:
        score = float(text or "")
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: {text!r} is no {name}; expected a finite number")
    return score
