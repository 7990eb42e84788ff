"""Samples of a dataset through a backbone, by order of sample id: no augmentation, no mirror
image."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfaces.configs.schema import Config
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.index import Part
from manyfaces.data.dataset.mixture import AnyDataset
from manyfaces.data.feed.decode import Decoder, Decoding
from manyfaces.data.store.mapped import Store
from manyfaces.models.backbones.backbone import normalise

_BATCH, _SHARDS_AHEAD, _DECODE_THREADS = 256, 4, 8
_WINDOW = 1 << 20
"""Sample ids that are looked through at a time."""
# A batch without a good image would count as the decoder's own fault: this one is good.
SOUND = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].reshape(-1)


class Embedded(NamedTuple):
    """Some samples, of one part of the dataset."""

    ids_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    keys: list[str]
    """`SHARD:KEY` of each."""
    unit_ND: Tensor
    """Unit embeddings, float32 on the device."""


@dataclass
class LeftOut:
    """How many samples are not among the embedded, and why."""

    forgotten: int = 0
    broken: int = 0


def embed(
    dataset: AnyDataset,
    config: Config,
    backbone: nn.Module,
    device: torch.device,
    left_out: LeftOut,
    advance: Callable[[int], None],
    wanted_C: NDArray[np.bool_] | None = None,
) -> Iterator[Embedded]:
    """All samples of the classes wanted, or of all, but those that are forgotten, whose bytes are
    not read, or cannot be decoded; they are counted in `left_out`.

    `advance` is told how many samples are done. The next batch is read and decoded while one is in
    use.
    """
    decode = Decoder(
        config.data.image_px,
        _BATCH + 1,
        threads=min(os.cpu_count() or 1, _DECODE_THREADS),
        device=device,
    )
    autocast = config.train.precision == "bfloat16"
    backbone.eval()
    for part in dataset.parts:
        for ids_N, keys, decoding in _one_ahead(_begin(part, wanted_C, decode, left_out, advance)):
            images, good = decode.finish(decoding)
            rows_N = np.flatnonzero(good[:-1])
            left_out.broken += len(ids_N) - len(rows_N)
            if len(rows_N):
                images_NHWC = images[torch.from_numpy(rows_N).to(device)]
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, torch.bfloat16, enabled=autocast),
                ):
                    unit_ND = F.normalize(backbone(normalise(images_NHWC)).float())
                labels_N = part.first_class + part.dataset.labels(ids_N[rows_N])
                yield Embedded(
                    part.first_sample + ids_N[rows_N],
                    labels_N,
                    [keys[row] for row in rows_N],
                    unit_ND,
                )


_Begun = tuple[NDArray[np.int64], list[str], Decoding]


def _begin(
    part: Part,
    wanted_C: NDArray[np.bool_] | None,
    decode: Decoder,
    left_out: LeftOut,
    advance: Callable[[int], None],
) -> Iterator[_Begun]:
    """Sample ids in the part, their keys, and their images being decoded."""
    dataset, store = part.dataset, Store(part.dataset)
    forgotten, num_images = read_forgotten(dataset), dataset.manifest.num_images
    try:
        for first in range(0, num_images, _WINDOW):
            window_N = np.arange(first, min(first + _WINDOW, num_images))
            if wanted_C is not None:
                window_N = window_N[wanted_C[part.first_class + dataset.labels(window_N)]]
            sound_N = window_N[~forgotten.among(dataset, window_N)]
            left_out.forgotten += len(window_N) - len(sound_N)
            advance(len(window_N) - len(sound_N))
            shards = np.unique(dataset.shard_N[sound_N]).astype(np.int64)
            for start in range(0, len(sound_N), _BATCH):
                ids_N = sound_N[start : start + _BATCH]
                here, last = np.searchsorted(shards, dataset.shard_N[ids_N[[0, -1]]])
                store.ahead([shards[here : last + 1], shards[last + 1 : last + 1 + _SHARDS_AHEAD]])
                yield ids_N, dataset.keys(ids_N), decode.start([*store.read(ids_N), SOUND])
                advance(len(ids_N))
    finally:
        store.close()


def _one_ahead(batches: Iterator[_Begun]) -> Iterator[_Begun]:
    """Each once the one after it was begun."""
    begun = next(batches, None)
    while begun is not None:
        following = next(batches, None)
        yield begun
        begun = following
