"""Images that an export is calibrated and checked on.

Shapes: N images of height H and width W.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.dataset.manifest import MANIFEST
from manyfaces.data.sources.file_names import IMAGE_SUFFIXES
from manyfaces.data.sources.verification_bin import read_bin
from manyfaces.data.store.samples import Stores
from manyfaces.data.synthetic.faces import encode

ImageHW = tuple[int, int]
_SEED = 1
"""Stream of the made faces that stand in for real ones."""


class Faces(NamedTuple):
    """Decoded images."""

    images_NHWC: Tensor
    """uint8 RGB, on the CPU."""
    told: str
    """How many there are and where from, for people."""
    real: bool = True
    """Whether they are somebody's images, or were made up."""


def faces_of(path: Path, most: int, image_hw: ImageHW) -> Faces:
    """At most this many images of a verification set (`.bin`), of a dataset, or of a folder with
    image files at any depth, spread evenly over it and resized to `image_hw`. Raises `UserError`
    for any other path, and for an image that cannot be decoded."""
    if path.suffix == ".bin":
        blobs: Sequence[NDArray[np.uint8]] = read_bin(path).blobs
        chosen = _spread(len(blobs), most)
        named = [(f"{path}: image {number}", blobs[number]) for number in chosen]
    elif (path / MANIFEST).is_file():
        named = _of_dataset(path, most)
    elif path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        some = [files[number] for number in _spread(len(files), most)]
        named = [(str(file), np.fromfile(file, np.uint8)) for file in some]
    else:
        raise UserError(f"{path}: expected a folder of images, a dataset or a .bin")
    if not named:
        raise UserError(f"{path}: no image in it; give a folder of images, a dataset or a .bin")
    images = torch.cat([_decoded(name, blob, image_hw) for name, blob in named])
    return Faces(images, f"{len(named):,} images of {path.name}")


def own_faces(config: Config | None, most: int, image_hw: ImageHW) -> Faces:
    """Images that are at hand without being named: of the run's verification sets, or else of the
    dataset that it was trained on. Made faces where neither is there."""
    for place in _places(config):
        if place.exists():
            return faces_of(place, most, image_hw)
    blobs = [np.frombuffer(encode(_SEED, number, 0), np.uint8) for number in range(most)]
    images = torch.cat([_decoded(f"made face {n}", b, image_hw) for n, b in enumerate(blobs)])
    return Faces(images, f"{most:,} made faces, as no real ones are at hand", real=False)


def _places(config: Config | None) -> list[Path]:
    """Where the images of a run's evaluation and training may be on this machine."""
    if config is None:
        return []
    sets = [getattr(each, "path", "") for each in config.evaluation.all_protocols()]
    bins = [path for path in sets if path.endswith(".bin")]
    return [Path(p) for p in (*bins, *config.data.paths) if p and url_of(p) is None]


def _of_dataset(path: Path, most: int) -> list[tuple[str, NDArray[np.uint8]]]:
    dataset = open_dataset(path)
    chosen = _spread(dataset.manifest.num_images, most)
    stores = Stores(dataset)
    try:
        blobs = stores.read(np.array(chosen, np.int64))
    finally:
        stores.close()
    return [(f"{path}: image {n}", blob) for n, blob in zip(chosen, blobs, strict=True)]


def _spread(count: int, most: int) -> list[int]:
    """Numbers below `count`, at most so many, evenly spaced."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def _decoded(name: str, blob: NDArray[np.uint8], image_hw: ImageHW) -> Tensor:
    """One image, uint8 RGB [1, H, W, 3]."""
    pixels = cv2.imdecode(blob, cv2.IMREAD_COLOR_RGB) if len(blob) else None
    if pixels is None:
        raise UserError(f"{name} is not a whole, decodable image; use an intact copy")
    image_NHWC = torch.from_numpy(pixels)[None]
    if image_NHWC.shape[1:3] == image_hw:
        return image_NHWC
    resized = F.interpolate(
        image_NHWC.permute(0, 3, 1, 2).float(), image_hw, mode="bilinear", antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
