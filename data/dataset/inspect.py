"""What is in a dataset, and what its faces look like."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.sample import jpeg_size
from manyfaces.data.picture_grid import refuse_no_picture, write_grid
from manyfaces.data.store.samples import Store

_CHUNK, _SIZES_READ = 1 << 22, 10_000
_APPEARANCES = 8  # columns of an augmented grid, the first of them as on disk


@dataclass(frozen=True)
class Stats:
    """What `stats` counts."""

    images: int
    identities: int
    shards: int
    shard_bytes: int
    jpeg_bytes: tuple[int, float, int]
    """Least, mean and most of an image."""
    images_of_identity_C: NDArray[np.int64]
    """Images of each class, [C]; 0 for a class without one."""
    sizes: list[tuple[tuple[int, int] | None, int]]
    """(height, width) and how many of `sizes_read` images have it, most frequent first; None is no
    readable JPEG header."""
    sizes_read: int

    @property
    def median(self) -> float:
        """Images of the median identity."""
        return float(np.median(self.images_of_identity_C))

    @property
    def deciles(self) -> list[int]:
        """Images of an identity at the 10th, 20th ... 90th percentile."""
        return [
            int(n)
            for n in np.percentile(self.images_of_identity_C, range(10, 100, 10), method="nearest")
        ]


def stats(part: Part) -> Stats:
    """Count images, identities and bytes; sizes of images by header, of 10,000 spread evenly unless
    the manifest knows them. Raises `UserError` for a label that is out of range."""
    manifest, num_images = part.manifest, part.manifest.num_images
    count_C, jpeg_bytes = _counts(part)
    sizes_read = num_images
    sizes: Counter[tuple[int, int] | None] = Counter({manifest.image_px: num_images})
    if manifest.image_px is None:
        spread = np.linspace(0, num_images - 1, min(num_images, _SIZES_READ))
        rows_N = np.unique(spread.astype(np.int64))
        headers = (jpeg_size(blob[:4096].tobytes()) for blob in Store(part).read(rows_N))
        sizes_read, sizes = len(rows_N), Counter(headers)
    shard_bytes = sum(shard.bytes for shard in manifest.shards)
    return Stats(
        num_images,
        len(count_C),
        len(manifest.shards),
        shard_bytes,
        jpeg_bytes,
        count_C,
        sizes.most_common(),
        sizes_read,
    )


def _counts(part: Part) -> tuple[NDArray[np.int64], tuple[int, float, int]]:
    """Images of each identity, int64 [C], and least, mean and most bytes of an image."""
    count_C = np.zeros(part.manifest.num_identities, np.int64)
    least, total, most = 2**32, 0, 0
    for rows in _chunks(part.manifest.num_images):  # so that 260 million rows need no memory
        found = np.bincount(part.identity_N[rows], minlength=len(count_C))
        if len(found) > len(count_C):
            raise UserError(
                f"{part.path}: a label is not in [0, {len(count_C)}); run `manyfaces data check "
                f"{part.path}`"
            )
        count_C += found
        sizes_N = part.size_N[rows]
        least, most = min(least, int(sizes_N.min())), max(most, int(sizes_N.max()))
        total += int(sizes_N.sum(dtype=np.int64))
    return count_C, (least, total / part.manifest.num_images, most)


def _chunks(length: int) -> Iterator[slice]:
    """Slices that together cover range(length)."""
    return (slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK))


def sample(
    part: Part,
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
    # DALI takes a second to import, which a count has no use for.
    import torch

    from manyfaces.data.feed.decode import Decoder

    refuse_no_picture(out)
    count = count or (8 if config else 64)
    rows_N, what = _choose(part, identity, count, seed)
    rows_N = rows_N[~read_forgotten_part(part).mask(rows_N, part.identity_N[rows_N])]
    if not len(rows_N):
        raise UserError(f"{part.where}: no image to show: {what}, all of them forgotten")
    side = max(part.manifest.image_px or (112,))
    image_hw = config.data.image_hw if config else (side, side)
    blobs = Store(part).read(rows_N)
    images, good = Decoder(image_hw, max(len(rows_N), 1), device=torch.device("cpu"))(blobs)
    if not good.any():
        raise UserError(f"{part.path}: no image to show: {what}, {len(rows_N)} of them broken")
    tiles, columns = images.numpy()[good], int(np.ceil(np.sqrt(good.sum())))
    if config:
        shown = [blob for blob, whole in zip(blobs, good, strict=True) if whole]
        columns = _APPEARANCES
        appearances = _appearances(shown, config)
        appearances[::columns] = tiles
        tiles, what = appearances, f"{what}, each as it is and in {columns - 1} appearances"
    write_grid(tiles, columns, out)
    return what, int((~good).sum())


def _choose(
    part: Part, identity: str | None, count: int, seed: int
) -> tuple[NDArray[np.int64], str]:
    """Rows of the images to show, and what they are in words."""
    num_images = part.manifest.num_images
    if identity is None:
        generator = np.random.default_rng(seed)
        rows_N = generator.choice(num_images, min(count, num_images), replace=False)
        return rows_N, f"{len(rows_N)} random images"
    number, name = _find_identity(part, identity)
    found = [
        np.flatnonzero(part.identity_N[rows] == number) + rows.start for rows in _chunks(num_images)
    ]
    of_theirs = np.concatenate(found)
    rows_N = of_theirs[:count]
    named = f" ({name})" if name else ""
    return rows_N, f"identity {number}{named}, {len(rows_N)} of its {len(of_theirs)} images"


def _appearances(blobs: Sequence[NDArray[np.uint8]], config: schema.Config) -> NDArray[np.uint8]:
    """Each image as often as a row of the grid has columns, augmented as in training."""
    import torch

    from manyfaces.data.feed.decode import Decoder
    from manyfaces.data.transforms.augmentation import Augmentation

    times = [blob for blob in blobs for _ in range(_APPEARANCES)]
    augmentation = Augmentation(config.data.augment, config.data.image_hw)
    choices = augmentation.draw(config.run.seed, np.arange(len(times)))
    decode = Decoder(config.data.image_hw, len(times), augmentation, device=torch.device("cpu"))
    pixels: NDArray[np.uint8] = decode(times, choices)[0].numpy()
    return pixels


def _find_identity(part: Part, word: str) -> tuple[int, str]:
    """Number and name (empty without `identities.txt`) of the identity with this number or name."""
    file, limit = part.path / IDENTITIES, part.manifest.num_identities
    names = file.read_text().splitlines() if file.exists() else []
    if word.isdecimal() and int(word) < limit:
        return int(word), names[int(word)] if names else ""
    if word not in names:
        raise UserError(
            f"{part.path}: no identity {word!r}: give a class id in [0, {limit}) or a line of "
            f"{IDENTITIES}"
        )
    return names.index(word), word
