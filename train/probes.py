"""What a preflight asks of a node that only training knows: the dataset, the store of the runs, and
the rate at which images are decoded. Each is called on the node, and raises `UserError` with what
is wrong there."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config, UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import MANIFEST, Manifest, parse_manifest
from manyfaces.data.dataset.part import Part
from manyfaces.data.feed.view import View, main_view
from manyfaces.data.feed.view_decoder import ViewDecoder
from manyfaces.data.store.remote import Remote
from manyfaces.data.store.samples import Store
from manyfaces.data.synthetic.faces import encode
from manyfaces.data.transforms.augmentation import MAIN
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.evaluation.decoding import worker_decode_threads
from manyfaces.train.folder import run_url

PATIENCE_S = 20.0
"""How long a store is waited for; a run waits longer."""
SAMPLES, SHARDS = 256, 16
"""Samples that are read, from so many shards all over the dataset."""
MADE_FACES = 64
DECODE_S = 1.5
IMAGES_PER_THREAD = 64
"""Images of a batch for each of DALI's threads."""


def dataset(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the dataset can be read: its manifest, and samples from shards all over it; of shards
    at a URL their sizes alone, as they are fetched whole."""
    config = _config(payload)
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
        num_bytes += sum(map(len, _samples(part)))
        seconds += time.perf_counter() - began
    return {
        "fingerprint": "+".join(manifest.fingerprint for manifest in manifests),
        "images": sum(manifest.num_images for manifest in manifests),
        "identities": sum(manifest.num_identities for manifest in manifests),
        "read_bytes_s": num_bytes / seconds if seconds else None,
    }


def store(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the store of a run at a URL can be written."""
    url = run_url(_config(payload))
    assert url is not None
    RunStore(url, PATIENCE_S).check()
    return {}


def decode(payload: Mapping[str, Any]) -> dict[str, Any]:
    """How many images a second the node decodes and augments as the run does: on the CPU with a
    thread for each of its cores (`threads`), else on each of its GPUs with the run's threads. The
    images are the dataset's, where that lies in a folder, else made ones."""
    config = None if payload.get("config") is None else _config(payload)
    blobs, images = _images(config)
    on_gpu = torch.cuda.is_available() and (config is None or config.cluster.gpus_per_worker != 0)
    count = torch.cuda.device_count() if on_gpu else int(payload["threads"])
    threads = count
    if on_gpu:
        threads = 1 if config is None else worker_decode_threads(config, count)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    view = View((112, 112), ()) if config is None else main_view(config.data)
    rate = _rate(view, blobs, threads, device)
    return {
        "images_per_s": rate * count if on_gpu else rate,
        "each": rate if on_gpu else rate / count,
        "per": "GPU" if on_gpu else "core",
        "count": count,
        "images": images,
    }


def _config(payload: Mapping[str, Any]) -> Config:
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


def _samples(part: Part) -> list[NDArray[np.uint8]]:
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


def _images(config: Config | None) -> tuple[list[NDArray[np.uint8]], str]:
    """JPEGs to decode, and where they come from."""
    for path in config.data.paths if config is not None else ():
        if path and url_of(path) is None:
            part = open_part(path, config.data if config is not None else None)
            if part.remote is None:
                return _samples(part), "dataset"
    return [np.frombuffer(encode(0, n, 0), np.uint8) for n in range(MADE_FACES)], "made"


def _rate(
    view: View, blobs: Sequence[NDArray[np.uint8]], threads: int, device: torch.device
) -> float:
    """Images a second of one decoder, the next batch begun before the last is collected."""
    size = max(256, IMAGES_PER_THREAD * threads)
    batch = [blobs[n % len(blobs)] for n in range(size)]
    decoder = ViewDecoder(
        view, MAIN, seed=0, batch_size=size, share=(0, size), threads=threads, device=device
    )
    decoder.finish(decoder.start(batch, 0))  # builds the pipeline
    done, begun, since = 0, decoder.start(batch, size), time.perf_counter()
    while time.perf_counter() - since < DECODE_S or not done:
        following = decoder.start(batch, (done + 2) * size)
        decoder.finish(begun)
        begun, done = following, done + 1
    seconds = time.perf_counter() - since
    decoder.finish(begun)
    return done * size / seconds
