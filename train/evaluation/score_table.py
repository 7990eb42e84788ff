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
    path: str, images: Sequence[str], wanted: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """The columns among `wanted` of a CSV that has a column `image`, in which each of the names
    `images` stands once, in any order: the scores of `images`, [N], by the column's name. A name
    that is several times among `images` is one image.

    Raises `UserError`, with the line, for a file that cannot be read or has none of the columns,
    for what is no number, and for an image that is there twice, not at all, or not in the set.
    """
    found: dict[str, dict[str, float]] = {}
    known = set(images)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name for name in wanted if name in (reader.fieldnames or ())]
            if IMAGE not in (reader.fieldnames or ()) or not columns:
                raise UserError(
                    f"{path}: its columns are {', '.join(reader.fieldnames or ()) or 'none'}; "
                    f"expected {IMAGE} and one of {', '.join(wanted)} in the first line"
                )
            for row in reader:
                where, image = f"{path}:{reader.line_num}", (row[IMAGE] or "").strip()
                if image not in known:
                    raise UserError(
                        f"{where}: {image!r} is no image of the set, whose first is {images[0]} "
                        f"and whose last is {images[-1]}"
                    )
                if image in found:
                    raise UserError(f"{where}: image {image} is there twice; leave one out")
                found[image] = {name: _score(row[name], name, where) for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from error
    if missing := [image for image in dict.fromkeys(images) if image not in found]:
        raise UserError(
            f"{path}: has no line for image {missing[0]}, and for {len(missing)} of {len(known)}; "
            "give one for each image of the set"
        )
    return {name: np.array([found[image][name] for image in images]) for name in columns}


def _score(text: str | None, name: str, where: str) -> float:
    try:
        score = float(text or "")
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: {text!r} is no {name}; expected a finite number")
    return score
