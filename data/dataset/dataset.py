"""A dataset: one folder or URL, or several of them mixed by weight, their samples, classes and
shards one part after the other."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.edits import apply_edits
from manyfaces.data.dataset.index import fetch_index, map_index
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, parse_manifest
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.cache import RemoteSource


@dataclass(frozen=True, eq=False)
class Dataset:
    """One or several parts, each with its share of the stream of samples.

    Sample ids, class ids and shard numbers are those of the whole: the first part's come first,
    then the second's."""

    parts: tuple[Part, ...]
    shares: tuple[Fraction, ...]
    """Share of each part in the stream; together they are 1."""
    manifest: Manifest
    """The manifest of the only part, or what those of several parts say together; then its
    fingerprint tells other parts, other shares and another sequence of the parts."""

    @classmethod
    def of_part(cls, part: Part) -> "Dataset":
        """The dataset that has this part alone."""
        return cls((part,), (Fraction(1),), part.manifest)

    @property
    def part(self) -> Part:
        """The only part of a dataset that has one, for those who work on a single folder."""
        (part,) = self.parts
        return part

    @property
    def where(self) -> str:
        """The folders or URLs, for people."""
        return " + ".join(part.where for part in self.parts)

    def labels(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class ids of the samples, int64 [N]."""
        if len(self.parts) == 1:
            return self.part.labels(ids_N)
        labels_N = np.empty(len(ids_N), np.int64)
        for part in self.parts:
            slots = part.slots(ids_N)
            labels_N[slots] = part.labels(ids_N[slots] - part.first_sample)
        return labels_N

    def name(self, sample: int) -> str:
        """`SHARD:KEY` of a sample, for people; with several parts `PART/SHARD:KEY`."""
        part = next(part for part in reversed(self.parts) if sample >= part.first_sample)
        name = part.name(sample - part.first_sample)
        return name if len(self.parts) == 1 else f"{part.where}/{name}"


def open_part(path: str | Path, config: schema.Data | None = None) -> Part:
    """Open a dataset folder, or one at a URL; costs no more for 260 million samples than for ten,
    once a URL's index is in the cache.

    `config` says where the cache is, how much it may hold and how long a store may be away. Raises
    `UserError` for a folder that is none, for an index that is not the manifest's, for a store that
    cannot be read and for a cache that is too small for the order.
    """
    config = config or schema.Data()
    cache = Path(config.cache_dir).expanduser(), int(config.cache_gb * 1e9), config.store_patience_s
    if (url := url_of(path)) is not None:
        remote = RemoteSource(url, *cache)
        folder, manifest = fetch_index(remote)
        refuse_small_cache([(remote, manifest)], config)
        return _with_edits(url, folder, manifest, remote)
    path = Path(path)
    if not (path / MANIFEST).is_file():
        what = (
            "no such folder"
            if not path.is_dir()
            else f"no {MANIFEST} in it; make it with `manyfaces data convert|synth|index`"
        )
        raise UserError(f"dataset {path}: {what}")
    manifest = parse_manifest((path / MANIFEST).read_bytes(), str(path))
    if manifest.shards_url is None:
        return _with_edits(str(path), path, manifest, None)
    remote = RemoteSource(manifest.shards_url, *cache, with_index=False)
    refuse_small_cache([(remote, manifest)], config)
    return _with_edits(str(path), path, manifest, remote)


def _with_edits(where: str, folder: Path, manifest: Manifest, remote: RemoteSource | None) -> Part:
    """The part whose index is in `folder`, with what was edited there."""
    columns = map_index(where, folder, manifest)
    identity_N, edits = apply_edits(where, folder, manifest, columns.identity_N)
    return Part(
        folder, manifest, *columns._replace(identity_N=identity_N), remote=remote, edits=edits
    )


def open_dataset(path: str | Path, config: schema.Data | None = None) -> Dataset:
    """The dataset of one part that `open_part` opens, which says what is raised."""
    return Dataset.of_part(open_part(path, config))


def open_data(config: schema.Data) -> Dataset:
    """The dataset that the configuration names, of one part or mixed of several. Raises `UserError`
    as `open_part` and `join` do."""
    datasets = [open_dataset(path, config) for path in config.paths]
    if not config.mixture:
        return datasets[0]
    remote = [
        (dataset.part.remote, dataset.manifest)
        for dataset in datasets
        if dataset.part.remote is not None
    ]
    refuse_small_cache(remote, config)
    return join(datasets, config.shares)


def join(datasets: Sequence[Dataset], shares: Sequence[Fraction]) -> Dataset:
    """Datasets of one part each, mixed by their shares. Raises `UserError` for the same one twice,
    as each person in it would be two classes."""
    manifests = [dataset.manifest for dataset in datasets]
    first: dict[str, Dataset] = {}
    for dataset in datasets:
        if (same := first.setdefault(dataset.manifest.fingerprint, dataset)) is not dataset:
            raise UserError(
                f"data.mixture: {dataset.where} is the same dataset as {same.where}; give it once, "
                "with the weight of both"
            )
    counts = [(m.num_images, m.num_identities, len(m.shards)) for m in manifests]
    *starts, totals = np.cumsum([(0, 0, 0), *counts], axis=0).tolist()
    parts = tuple(
        dataclasses.replace(
            dataset.part,
            first_sample=first_sample,
            first_class=first_class,
            first_shard=first_shard,
        )
        for dataset, (first_sample, first_class, first_shard) in zip(datasets, starts, strict=True)
    )
    described = "".join(
        f"{m.fingerprint} {share}\n" for m, share in zip(manifests, shares, strict=True)
    )
    manifest = Manifest(
        num_images=totals[0],
        num_identities=totals[1],
        image_px=manifests[0].image_px if len({m.image_px for m in manifests}) == 1 else None,
        index_sha256=hashlib.sha256(described.encode()).hexdigest(),
        shards=tuple(shard for m in manifests for shard in m.shards),
    )
    return Dataset(parts, tuple(shares), manifest)


def refuse_small_cache(
    remote: Sequence[tuple[RemoteSource, Manifest]], config: schema.Data
) -> None:
    """Raise `UserError` where the cache cannot hold the shards that the order needs at one time of
    these remote datasets, read together."""
    shards = [sorted((s.bytes for s in manifest.shards), reverse=True) for _, manifest in remote]
    needed = [largest[: config.order.num_cached_shards(len(largest))] for largest in shards]
    window = sum(map(sum, needed))
    if window > config.cache_gb * 1e9:
        least = f"a window of {sum(map(len, needed))} shards is up to {window / 1e9:.3g} GB"
        remedy = (
            f"set data.cache_gb={2.2 * window / 1e9:.2g} (two windows and some)"
            f"{config.order.needs_fewer_shards}"
        )
        urls = " + ".join(source.url for source, _ in remote)
        raise UserError(
            f"data.cache_gb {config.cache_gb:g} is too small for {urls}: {least}; {remedy}"
        )
