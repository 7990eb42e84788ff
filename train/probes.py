"""What only training knows of a node: whether it reads the dataset, and writes the store of the
runs. Each probe is called on the node, and raises `UserError` with what is wrong there; none needs
DALI."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config, UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, parse_manifest
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.remote import Remote
from manyfaces.data.store.samples import Store
from manyfaces.train.folder import run_url

PATIENCE_S = 20.0
"""How long a store is waited for; a run waits longer."""
SAMPLES, SHARDS = 256, 16
"""Samples that are read, from so many shards all over the dataset."""


def dataset(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the dataset can be read: its manifest, and samples from shards all over it; of shards
    at a URL their sizes alone, as they are fetched whole."""
    config = config_of(payload)
    manifests, num_bytes, seconds = [], 0, 0.0
    for path in config.data.paths:
        if not path:
            raise UserError("data.path is not set")
        if (url := url_of(path)) is not None:
            remote = Remote(url, _patience_s(config))
            manifests.append(parse_manifest(remote.read(MANIFEST), url))
            _refuse_missing(remote, manifests[-1])
            continue
        part = open_part(path, config.data)
        manifests.append(part.manifest)
        if part.remote is not None:
            _refuse_missing(Remote(part.remote.url, _patience_s(config)), part.manifest)
            continue
        began = time.perf_counter()
        num_bytes += sum(map(len, samples(part)))
        seconds += time.perf_counter() - began
    return {
        "fingerprint": "+".join(manifest.fingerprint for manifest in manifests),
        "images": sum(manifest.num_images for manifest in manifests),
        "identities": sum(manifest.num_identities for manifest in manifests),
        "read_bytes_s": num_bytes / seconds if seconds else None,
    }


def store(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the store of a run at a URL can be written."""
    # It brings torch. The driver of the check before a job has ended in oneMKL's "Cannot load
    # libtorch_cpu.so" where it loaded torch behind Ray's and Arrow's libraries.
    from manyfaces.train.checkpoint.store import RunStore

    config = config_of(payload)
    url = run_url(config)
    assert url is not None
    RunStore(url, min(config.checkpoint.store_patience_s, PATIENCE_S)).check()
    return {}


def config_of(payload: Mapping[str, Any]) -> Config:
    return load_stored(payload["config"], "the configuration of the preflight")


def _patience_s(config: Config) -> float:
    return min(config.data.store_patience_s, PATIENCE_S)


def _refuse_missing(remote: Remote, manifest: Manifest) -> None:
    sizes = remote.sizes([shard.name for shard in manifest.shards])
    missing = [
        shard.name
        for shard in manifest.shards
        if shard.name not in sizes or sizes[shard.name] not in (None, shard.bytes)
    ]
    if missing:
        raise UserError(
            f"{remote.url}: {len(missing)} shards are missing or of another size than the manifest "
            f"says, the first {missing[0]}"
        )


def samples(part: Part) -> list[NDArray[np.uint8]]:
    """The bytes of samples from shards all over the part."""
    ends = np.cumsum(part.samples_per_shard)
    chosen = np.unique(np.linspace(0, len(ends) - 1, SHARDS).astype(np.int64))
    each = -(-SAMPLES // len(chosen))
    rows = np.concatenate(
        [
            np.arange(max(ends[shard] - each, ends[shard - 1] if shard else 0), ends[shard])
            for shard in chosen
        ]
    )
    reader = Store(part)
    try:
        return reader.read(rows.tolist())
    finally:
        reader.close()
