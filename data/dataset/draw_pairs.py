"""Verification pairs drawn from a dataset."""

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.samples import Store

Ints = NDArray[np.int64]


def draw_pairs(
    dataset: Part, count: int, seed: int, folds: int = 10
) -> tuple[list[bytes], list[bool]]:
    """Draw `count` pairs, half of one identity and half of two, alternating by fold as LFW's do;
    returns the images of all pairs, and whether each pair shows one identity.

    What is forgotten is in none of them. Raises `UserError` where none can be made.
    """
    everyone = np.arange(dataset.manifest.num_images)
    rows = everyone[~read_forgotten_part(dataset).mask(everyone, dataset.identity_N)]
    order = rows[np.argsort(dataset.identity_N[rows], kind="stable")]
    identities, first, images = np.unique(
        dataset.identity_N[order], return_index=True, return_counts=True
    )
    if not (images >= 2).any() or len(identities) < 2:
        raise UserError(
            f"{dataset.path}: verification pairs need an identity with two images and a second "
            "identity"
        )
    positive = order[_pairs_of_one(first, images, count // 2, seed)]
    negative = order[_pairs_of_two(first, images, count // 2, seed)]
    parts, same = [], []
    for fold in range(folds):
        for pairs, is_same in ((positive[fold::folds], True), (negative[fold::folds], False)):
            parts.append(pairs)
            same += [is_same] * len(pairs)
    blobs = Store(dataset).read(np.concatenate(parts).reshape(-1))
    return [blob.tobytes() for blob in blobs], same


def _pairs_of_one(first: Ints, images: Ints, count: int, seed: int) -> Ints:
    """Rows of `count` pairs of different images of one identity, [count, 2]. The images of identity
    i are the `images[i]` rows from `first[i]` on."""
    u = _uniform(seed, rng.Stream.PAIRS_SAME, 3, count)
    several = np.flatnonzero(images >= 2)
    who = several[(u[0] * len(several)).astype(int)]
    one = (u[1] * images[who]).astype(int)
    other = (one + 1 + (u[2] * (images[who] - 1)).astype(int)) % images[who]
    return np.stack([first[who] + one, first[who] + other], 1)


def _pairs_of_two(first: Ints, images: Ints, count: int, seed: int) -> Ints:
    """Rows of `count` pairs of images of different identities, [count, 2]."""
    u = _uniform(seed, rng.Stream.PAIRS_OTHER, 4, count)
    one = (u[0] * len(images)).astype(int)
    other = (one + 1 + (u[1] * (len(images) - 1)).astype(int)) % len(images)
    rows = [first[who] + (v * images[who]).astype(int) for who, v in ((one, u[2]), (other, u[3]))]
    return np.stack(rows, 1)


def _uniform(seed: int, stream: rng.Stream, rows: int, count: int) -> NDArray[np.float64]:
    numbers = np.arange(rows * count, dtype=np.uint64)
    return rng.uniform(rng.key(seed, stream), numbers).reshape(rows, count)
