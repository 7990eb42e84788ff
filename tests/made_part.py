"""Datasets made from numbers alone, without a file: what orders go over."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.dataset.dataset import Dataset, join
from manyfaces.data.dataset.manifest import Manifest, Shard
from manyfaces.data.dataset.part import Part


def made_part(
    samples_per_shard: Sequence[int] | NDArray[np.int64],
    identity_N: NDArray[np.uint32] | None = None,
    name: str = "made",
) -> Part:
    """Shards of these numbers of samples; the samples are of these identities, or all of one."""
    counts = np.asarray(samples_per_shard, np.int64)
    num_images = int(counts.sum())
    shards = [Shard(f"{n}.tar", 0, count, f"{name}-{n}") for n, count in enumerate(counts.tolist())]
    if identity_N is None:  # no memory for it, as a test has 260 million samples
        identity_N = np.broadcast_to(np.uint32(0), num_images)
    nothing_N = np.broadcast_to(np.uint32(0), num_images)
    manifest = Manifest(
        num_images=num_images,
        num_identities=int(identity_N.max()) + 1,
        image_px=(112, 112),
        index_sha256=name,
        shards=tuple(shards),
    )
    return Part(Path(name), manifest, nothing_N, nothing_N, nothing_N, identity_N)


def of_people(identity_N: NDArray[np.uint32]) -> Part:
    """One shard with samples of these identities."""
    return made_part([len(identity_N)], identity_N)


def uneven_identities(num_images: int, num_identities: int) -> NDArray[np.uint32]:
    """Identities that follow each other in a fixed, uneven way, each at least once."""
    number_N = np.arange(num_images)
    spread_N = number_N * 7919 % 104729 % num_identities
    return np.where(number_N < num_identities, number_N, spread_N).astype(np.uint32)


def made_dataset(parts: Sequence[Part], weights: Sequence[int]) -> Dataset:
    """The only part as a dataset, or all mixed by weight."""
    datasets = [Dataset.of_part(part) for part in parts]
    if len(datasets) == 1:
        return datasets[0]
    return join(datasets, [Fraction(weight, sum(weights)) for weight in weights])
