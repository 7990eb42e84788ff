"""Images a second of the input path for one view of each image, and for several views of it.

    python tests/bench/bench_views.py DATASET [--batch 128] [--threads 1] [--rounds 3] [--tiny]

Each JPEG is decoded once for all views: beside the loader as a run has it stand the same views with
a decoder each, which decode it as often as there are views. `crops` are two large and six small
parts of each image without further changes, so that decoding is most of the work; `augmented` are
the same with the changes that DINO makes. Each row is printed as a line of JSON.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from told_rows import Row, attempt

from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.gray import Gray
from manyfaces.configs.transforms.resized_crop import ResizedCrop
from manyfaces.configs.transforms.transform import Transform
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.feed.view import View
from manyfaces.data.feed.view_decoder import ViewDecoder
from manyfaces.data.store.samples import Store

Blobs = list[NDArray[np.uint8]]
CPU = torch.device("cpu")
GLOBAL, LOCAL = ResizedCrop(scale=(0.4, 1.0)), ResizedCrop(scale=(0.05, 0.4))
CHANGES: tuple[Transform, ...] = (
    Flip(),
    Colour(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2),
    Gray(p=0.2),
    Blur(p=0.5, sigma_px=(0.1, 2.0)),
)


def views(num_local: int, changes: tuple[Transform, ...]) -> dict[str, View]:
    """Two views of 112 px and so many of 48."""
    found = {f"global_{n}": View((112, 112), (GLOBAL, *changes)) for n in range(2)}
    return found | {f"local_{n}": View((48, 48), (LOCAL, *changes)) for n in range(num_local)}


SETS = {
    "one view": {"main": View((112, 112), (Flip(),))},
    "one crop": {"main": View((112, 112), (GLOBAL,))},
    "crops 2 + 6": views(6, ()),
    "augmented 2 + 6": views(6, CHANGES),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    batch, seconds = (16, 0.1) if arguments.tiny else (arguments.batch, 3.0)
    dataset = open_dataset(arguments.dataset)
    count = min(dataset.manifest.num_images, 4096)
    blobs = [np.array(blob) for blob in Store(dataset.part).read(range(count))]

    def decoder(of: dict[str, View]) -> ViewDecoder:
        share = (0, batch)
        return ViewDecoder(
            of, seed=0, batch_size=batch, share=share, threads=arguments.threads, device=CPU
        )

    def measured(what: str, make: Callable[[], list[ViewDecoder]]) -> None:
        def measure() -> Row:
            rates = [rate(make(), blobs, batch, seconds) for _ in range(arguments.rounds)]
            detail = f"batch {batch}, {min(rates):,.0f} to {max(rates):,.0f}"
            return Row(what, statistics.median(rates), "images/s", detail)

        attempt(what, measure)

    for name, of in SETS.items():
        measured(f"{name}, decoded once", lambda of=of: [decoder(of)])  # type: ignore[misc]
        if len(of) > 1:
            measured(
                f"{name}, a decoder each",
                lambda of=of: [decoder({key: view}) for key, view in of.items()],  # type: ignore[misc]
            )


def rate(decoders: list[ViewDecoder], blobs: Blobs, batch: int, seconds: float) -> float:
    """Images a second, each counted once however many views it has; one batch is begun before the
    last is collected, as the loader has it."""
    endless = _batches(blobs, batch)

    def begin() -> list[object]:
        position, given = next(endless)
        return [each.start(given, position) for each in decoders]

    def finish(begun: list[object]) -> None:
        for each, decoding in zip(decoders, begun, strict=True):
            each.finish(decoding)  # type: ignore[arg-type]

    finish(begin())  # builds the pipelines
    done, begun, since = 0, begin(), time.perf_counter()
    while time.perf_counter() - since < seconds:
        following = begin()
        finish(begun)
        begun, done = following, done + 1
    spent = time.perf_counter() - since
    finish(begun)
    return done * batch / spent


def _batches(blobs: Blobs, batch: int) -> Iterator[tuple[int, Blobs]]:
    for number in itertools.count():
        first = number * batch
        yield first, [blobs[(first + i) % len(blobs)] for i in range(batch)]


if __name__ == "__main__":
    main()
