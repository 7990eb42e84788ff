"""How long one face takes on one core, stage by stage, and which of FRUITS' time tracks that fits
(WebFace260M, arXiv 2103.04098: 100, 500 and 1,000 ms for the whole of
detection, alignment, embedding and matching on one core).

Shapes: N faces, D the embedding.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from manyfaces.data.conversion.align import TEMPLATE, TEMPLATE_PX, align
from manyfaces.models.backbones.encoder import Encoder

TRACKS_MS = (100, 500, 1000)
"""FRUITS' tracks: mobile, local surveillance, cloud."""
GALLERY = 1_000_000
"""Faces that one is compared with in the stage of matching."""
_BLOCK = 50_000
"""Faces of the gallery that are kept and compared at a time: the rest would say nothing new."""
_FRAME_PX = 250
"""Side of the image that a face is decoded and aligned from, as LFW's are."""
_SECONDS, _LEAST_REPEATS, _WARM_UP = 2.0, 10, 3


class Stage(NamedTuple):
    """The time of one stage, in milliseconds a face."""

    name: str
    median_ms: float
    slowest_ms: float
    """The 95th percentile."""


class Latency(NamedTuple):
    """The time of one face on one core of this machine."""

    stages: tuple[Stage, ...]
    machine: str

    @property
    def total_ms(self) -> float:
        """Of one face, all stages together: of their 95th percentiles."""
        return sum(stage.slowest_ms for stage in self.stages)

    def lines(self) -> list[str]:
        """Which tracks it fits, for people."""
        fits = [track for track in TRACKS_MS if self.total_ms <= track]
        told = [f"measured on one core of {self.machine}; a track is for its own processor"]
        if not fits:
            told.append(f"fits none of FRUITS' tracks here: {self.total_ms:.0f} ms a face")
        for track in fits:
            left = track - self.total_ms
            told.append(
                f"fits FRUITS' track of {track:,} ms here, with {left:.0f} ms left for detection, "
                "which is not part of manyfaces"
            )
        return told


def measured(opened: Callable[[], Encoder]) -> Latency:
    """The time that a face takes, one at a time on one core: decoding, aligning, embedding and
    comparing with a gallery of `GALLERY`. `opened` opens the network on the CPU; it is called on
    the one core, as a graph keeps the threads that it was opened with."""
    with _one_core():
        stages = _stages(opened())
    return Latency(stages, _machine())


def _stages(encoder: Encoder) -> tuple[Stage, ...]:
    generator = np.random.default_rng(0)
    frame = generator.integers(0, 256, (_FRAME_PX // 10, _FRAME_PX // 10, 3), np.uint8)
    frame = cv2.resize(frame, (_FRAME_PX, _FRAME_PX), interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(".jpg", frame)[1]
    points = TEMPLATE * 1.3 + (_FRAME_PX - 1.3 * TEMPLATE_PX) / 2
    face_NHWC = torch.zeros(1, *encoder.image_hw, 3, dtype=torch.uint8, device=encoder.device)
    width = encoder.model.embedding_dim
    gallery_ND = torch.randn(_BLOCK, width)
    probe_D = torch.randn(width)

    def match() -> Tensor:
        return torch.mv(gallery_ND, probe_D).topk(1).values

    matching = _timed("match", match)
    scale = GALLERY / _BLOCK
    return (
        _timed(f"decode ({_FRAME_PX} px JPEG)", lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR)),
        _timed("align (five landmarks)", lambda: align(frame, points)),
        _timed("embed", lambda: encoder.embed(face_NHWC).cpu()),
        Stage(
            f"match ({GALLERY:,} faces)", matching.median_ms * scale, matching.slowest_ms * scale
        ),
    )


def _timed(name: str, work: Callable[[], object]) -> Stage:
    for _ in range(_WARM_UP):
        work()
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(taken) < _LEAST_REPEATS or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - begun))
    return Stage(name, float(np.median(taken)), float(np.percentile(taken, 95)))


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """This process on one core, with one thread of torch's and OpenCV's."""
    threads, of_cv = torch.get_num_threads(), cv2.getNumThreads()
    cores = os.sched_getaffinity(0)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        cv2.setNumThreads(of_cv)
        torch.set_num_threads(threads)


def _machine() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
