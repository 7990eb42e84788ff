"""What is in a dataset, and what its faces look like."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.index import Dataset
from manyfaces.data.dataset.sample import jpeg_size
from manyfaces.data.dataset.write import IDENTITIES
from manyfaces.data.store.mapped import Store

_CHUNK, _SIZES_READ = 1 << 22, 10_000
_APPEARANCES = 8  # columns of an augmented grid, the first of them as on disk


@dataclass(frozen=True)
class Stats:
    images: int
    identities: int
    shards: int
    shard_bytes: int
    jpeg_bytes: tuple[int, float, int]
    """Least, mean and most of an image."""
    images_of_identity_C: NDArray[np.int64]
    """[C]; 0 for a class without an image."""
    sizes: list[tuple[tuple[int, int] | None, int]]
    """(height, width) and how many of `sizes_read` images have it, most frequent first; None is no
    readable JPEG header."""
    sizes_read: int

    @property
    def median(self) -> float:
        return float(np.median(self.images_of_identity_C))

    @property
    def deciles(self) -> list[int]:
        """Images of an identity at the 10th, 20th ... 90th percentile."""
        return [
            int(n)
            for n in np.percentile(self.images_of_identity_C, range(10, 100, 10), method="nearest")
        ]


def stats(dataset: Dataset) -> Stats:
    """Count images, identities and bytes; sizes of images by header, of 10,000 spread evenly unless
    the manifest knows them."""
    manifest, num_images = dataset.manifest, dataset.manifest.num_images
    counts = np.zeros(manifest.num_identities, np.int64)
    least, total, most = 2**32, 0, 0
    for rows in _chunks(num_images):  # so that 260 million rows need no memory
        found = np.bincount(dataset.identity_N[rows], minlength=len(counts))
        if len(found) > len(counts):
            raise UserError(
                f"{dataset.path}: a label is not in [0, {len(counts)}); run `manyfaces data check "
                f"{dataset.path}`"
            )
        counts += found
        sizes_N = dataset.size_N[rows]
        least, total, most = (
            min(least, int(sizes_N.min())),
            total + int(sizes_N.sum(dtype=np.int64)),
            max(most, int(sizes_N.max())),
        )
    read = num_images
    sizes: Counter[tuple[int, int] | None] = Counter({manifest.image_px: num_images})
    if manifest.image_px is None:
        ids = np.unique(
            np.linspace(0, num_images - 1, min(num_images, _SIZES_READ)).astype(np.int64)
        )
        read, sizes = (
            len(ids),
            Counter(jpeg_size(blob[:4096].tobytes()) for blob in Store(dataset).read(ids)),
        )
    shard_bytes = sum(shard.bytes for shard in manifest.shards)
    jpeg_bytes = (least, total / num_images, most)
    return Stats(
        num_images,
        len(counts),
        len(manifest.shards),
        shard_bytes,
        jpeg_bytes,
        counts,
        sizes.most_common(),
        read,
    )


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


def sample(
    dataset: Dataset,
    out: Path,
    *,
    identity: str | None = None,
    count: int | None = None,
    seed: int = 0,
    config: schema.Config | None = None,
) -> tuple[str, int]:
    """Draw a grid of images to `out` (.png or .jpg); returns what it shows, and how many of its
    images could not be decoded.

    `identity` is a class id or a line of `identities.txt`; without it images are random by `seed`.
    With `config`, each row is one image as it is and as seven appearances in training. Raises
    `UserError` for an identity that is not there, and for no image to show.
    """
    import cv2
    import torch

    from manyfaces.data.feed.decode import (
        Decoder,
    )  # DALI takes a second to import, which a count has no use for
    from manyfaces.data.transforms import augment

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{out}: an image is written; give a name that ends in .png or .jpg")
    count = count or (8 if config else 64)
    if identity is None:
        ids = np.random.default_rng(seed).choice(
            dataset.manifest.num_images, min(count, dataset.manifest.num_images), replace=False
        )
        what = f"{len(ids)} random images"
    else:
        number, name = _find_identity(dataset, identity)
        found = [
            np.flatnonzero(dataset.identity_N[rows] == number) + rows.start
            for rows in _chunks(dataset.manifest.num_images)
        ]
        everything = np.concatenate(found)
        ids = everything[:count]
        what = (
            f"identity {number}{name and f' ({name})'}, {len(ids)} of its {len(everything)} images"
        )
    ids = ids[~read_forgotten(dataset).among(dataset, ids)]
    if not len(ids):
        raise UserError(f"{dataset.where}: no image to show: {what}, all of them forgotten")
    px = config.data.image_px if config else max(dataset.manifest.image_px or (112,))
    blobs = Store(dataset).read(ids)
    images, good = Decoder(px, max(len(ids), 1), device=torch.device("cpu"))(blobs)
    if not good.any():
        raise UserError(f"{dataset.path}: no image to show: {what}, {len(ids)} of them broken")
    tiles, columns = images.numpy()[good], int(np.ceil(np.sqrt(good.sum())))
    if config:
        columns, shown = (
            _APPEARANCES,
            [blob for blob, whole in zip(blobs, good, strict=True) if whole],
        )
        times = [blob for blob in shown for _ in range(columns)]
        choices = augment.draw(config.data.augment, config.run.seed, np.arange(len(times)), px)
        changed = Decoder(px, len(times), augment=config.data.augment, device=torch.device("cpu"))(
            times, choices
        )[0].numpy()
        changed[::columns] = tiles
        tiles, what = changed, f"{what}, each as it is and in {columns - 1} appearances"
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * columns, px, px, 3), 255, np.uint8)
    grid[: len(tiles)] = tiles
    picture = (
        grid.reshape(rows, columns, px, px, 3).swapaxes(1, 2).reshape(rows * px, columns * px, 3)
    )
    if not cv2.imwrite(str(out), picture[:, :, ::-1]):
        raise UserError(f"{out}: cannot be written; is its folder there?")
    return what, int((~good).sum())


def _find_identity(dataset: Dataset, word: str) -> tuple[int, str]:
    file, limit = dataset.path / IDENTITIES, dataset.manifest.num_identities
    names = file.read_text().splitlines() if file.exists() else []
    if word.isdecimal() and int(word) < limit:
        return int(word), names[int(word)] if names else ""
    if word not in names:
        raise UserError(
            f"{dataset.path}: no identity {word!r}: give a class id in [0, {limit}) or a line of "
            f"{IDENTITIES}"
        )
    return names.index(word), word
