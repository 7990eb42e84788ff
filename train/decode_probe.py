"""How fast a node decodes and augments images, which a preflight asks beside the `probes`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.feed.view import View, main_view
from manyfaces.data.feed.view_decoder import ViewDecoder
from manyfaces.data.synthetic.faces import encode
from manyfaces.data.transforms.augmentation import MAIN
from manyfaces.train.evaluation.decoding import worker_decode_threads
from manyfaces.train.probes import config_of, samples

MADE_FACES = 64
DECODE_S = 1.5
IMAGES_PER_THREAD = 64
"""Images of a batch for each of DALI's threads."""


def decode(payload: Mapping[str, Any]) -> dict[str, Any]:
    """How many images a second the node decodes and augments as the run does: on the CPU with a
    thread for each of its cores (`threads`), else on each of its GPUs with the run's threads. The
    images are the dataset's, where that lies in a folder, else made ones."""
    config = None if payload.get("config") is None else config_of(payload)
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


def _images(config: Config | None) -> tuple[list[NDArray[np.uint8]], str]:
    """JPEGs to decode, and where they come from."""
    for path in config.data.paths if config is not None else ():
        if path and url_of(path) is None:
            part = open_part(path, config.data if config is not None else None)
            if part.remote is None:
                return samples(part), "dataset"
    return [np.frombuffer(encode(0, n, 0), np.uint8) for n in range(MADE_FACES)], "made"


def _rate(
    view: View, blobs: Sequence[NDArray[np.uint8]], threads: int, device: torch.device
) -> float:
    """Images a second of one decoder, the next batch begun before the last is collected."""
    size = max(256, IMAGES_PER_THREAD * threads)
    batch = [blobs[n % len(blobs)] for n in range(size)]
    decoder = ViewDecoder(
        {MAIN: view}, seed=0, batch_size=size, share=(0, size), threads=threads, device=device
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
