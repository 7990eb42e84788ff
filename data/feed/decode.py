"""Bytes of JPEGs, and of PNGs where they are wanted, to uint8 images by DALI, on the CPU or a GPU,
augmented by choices that were drawn before; each image is decoded once for all views of it. The one
file that imports nvidia.dali."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from manyfaces.data.dataset.sample import too_large, usable_jpeg
from manyfaces.data.transforms.augmentation import Augmentation, Choices
from manyfaces.data.transforms.transform import Transform

Blobs = Sequence[NDArray[np.uint8]]
_PACKED_BYTES_PER_BYTE = 4
_GENERATED = "__autograph_generated_file"
"""Start of the names of the modules that DALI makes of functions with an `if` on a node."""
_LEAST_BYTES = 5
"""A JPEG begins with the bytes FF D8 FF and ends with FF D9."""
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_CHUNK_BYTES = 12
"""A chunk of a PNG (W3C PNG, 5.3) has its length, its type and a checksum around its data."""


@dataclass(frozen=True, eq=False)
class Decoding:
    """A batch that is being decoded."""

    blobs: Blobs
    choices: tuple[Choices | None, ...]
    """Those of each view."""
    good: NDArray[np.bool_]
    """[N]: which blobs hold a whole image that is not too large, in a format that is taken."""
    pipeline: Pipeline | None
    """The pipeline that has the good blobs; none where no blob is good, or it did not take them."""


class ViewsDecoder:
    """Decodes batches of up to `max_batch` images, each once, into [N, height, width, 3] uint8 RGB
    tensors, one for each view.

    Images are JPEGs; with `takes_png`, PNGs too. `augmentations` say the size of each view and its
    changes, by the choices that each batch comes with.

    `start` one batch before `finish` of the last keeps all threads busy in between. A corrupt image
    costs itself only, though it ends a DALI pipeline for good: its batch is bisected with pipelines
    of their own.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        max_batch: int,
        *,
        threads: int = 1,
        device: torch.device,
        takes_png: bool = False,
    ) -> None:
        self.augmentations, self.max_batch = tuple(augmentations), max_batch
        self._is_usable = _usable_jpeg_or_png if takes_png else usable_jpeg
        self.threads, self.device = threads, device
        steps = [step for each in self.augmentations for step in each.steps]
        # Flips alone, the usual augmentation, are cheaper in place: DALI's would write every image
        # to fresh memory. Several views may be one tensor of DALI's.
        self._in_place = (
            len(self.augmentations) == 1
            and device.type == "cpu"
            and all(step.works_in_place for step in steps)
        )
        # Asking each image for its size costs a tenth of the time: until one is seen that differs,
        # the result's size tells, if no change sets it.
        self._resizes = not all(step.keeps_size for step in steps)
        self._pipeline: Pipeline | None = None
        self._spare: Pipeline | None = None
        self._problem = ""

    def start(self, blobs: Blobs, choices: Sequence[Choices | None]) -> Decoding:
        """Begin to decode a batch in the background, with the choices of each view; `finish` it
        before the one that is started after the next."""
        for each, augmentation in zip(choices, self.augmentations, strict=True):
            assert each is not None or not augmentation.steps
        packed = _pack(blobs)
        good = np.fromiter(map(self._is_usable, blobs), bool, len(blobs))
        rows = np.flatnonzero(good)
        if len(rows) == 0:
            return Decoding(blobs, tuple(choices), good, None)
        if len(rows) < len(blobs):
            packed = packed[rows] if packed is not None else None
        self._pipeline = self._pipeline or self._build(self._resizes)
        started = Decoding(blobs, tuple(choices), good, self._pipeline)
        try:
            self._feed(self._pipeline, blobs, choices, rows, packed)
        except RuntimeError as error:
            self._pipeline, self._problem = None, str(error)
        return started

    def finish(self, started: Decoding) -> tuple[list[Tensor], NDArray[np.bool_]]:
        """The images of each view, and which of them are real, in the sequence in which batches
        were started; the others show the next good image of the batch (black if there is none)."""
        blobs, good = started.blobs, started.good.copy()
        rows, views = np.flatnonzero(good), None
        tried = len(rows)
        # A pipeline that another batch has ended is not the one at hand any more.
        if started.pipeline is not None and started.pipeline is self._pipeline:
            try:
                views = self._collect(started.pipeline, started.choices, rows)
            except RuntimeError as error:
                self._pipeline, self._problem = None, str(error)
        if views is None or tried < len(blobs):
            whole = [
                torch.zeros(len(blobs), *each.image_hw, 3, dtype=torch.uint8, device=self.device)
                for each in self.augmentations
            ]
            if views is not None:
                self._put(whole, rows, views)
            else:
                self._bisect(whole, blobs, started.choices, rows, good)
            views = whole
        # Where no image of the batch can be decoded, it is the images only if a sound one can.
        if tried and not good.any() and not self._decodes_a_sound_image():
            raise RuntimeError(f"DALI could not decode any of {tried} images: {self._problem}")
        if not good.all() and good.any():
            real = np.flatnonzero(good)
            stand_in = real[np.searchsorted(real, np.flatnonzero(~good)) % len(real)]
            for images in views:
                images[torch.from_numpy(np.flatnonzero(~good))] = images[torch.from_numpy(stand_in)]
        return views, good

    def _put(self, whole: list[Tensor], rows: NDArray[np.int64], views: list[Tensor]) -> None:
        """Put the images of each view into these rows of the whole batch."""
        at = torch.from_numpy(rows).to(self.device)
        for images, decoded in zip(whole, views, strict=True):
            images[at] = decoded

    def _decodes_a_sound_image(self) -> bool:
        """Whether an image that is certainly whole comes out of a pipeline of its own."""
        black = np.zeros((*self.augmentations[0].image_hw, 3), np.uint8)
        sound = [cv2.imencode(".jpg", black)[1].reshape(-1)]
        choices = [each.example() if each.steps else None for each in self.augmentations]
        pipeline = self._build(resizes=True)
        try:
            self._feed(pipeline, sound, choices, np.arange(1), None)
            self._collect(pipeline, choices, np.arange(1))
        except RuntimeError as error:
            self._problem = str(error)
            return False
        return True

    def _bisect(
        self,
        whole: list[Tensor],
        blobs: Blobs,
        choices: Sequence[Choices | None],
        rows: NDArray[np.int64],
        good: NDArray[np.bool_],
    ) -> None:
        if len(rows) == 0:
            return
        self._spare = self._spare or self._build(resizes=True)
        try:
            self._feed(self._spare, blobs, choices, rows, None)
            self._put(whole, rows, self._collect(self._spare, choices, rows))
        except RuntimeError as error:
            self._spare, self._problem = None, str(error)
            if len(rows) == 1:
                good[rows] = False
                return
            half = len(rows) // 2
            self._bisect(whole, blobs, choices, rows[:half], good)
            self._bisect(whole, blobs, choices, rows[half:], good)

    def _feed(
        self,
        pipeline: Pipeline,
        blobs: Blobs,
        choices: Sequence[Choices | None],
        rows: NDArray[np.int64],
        packed: NDArray[np.uint8] | None,
    ) -> None:
        pipeline.feed_input("jpeg", packed if packed is not None else [blobs[i] for i in rows])
        for view, of_view in enumerate(choices):
            if of_view is None or self._in_place:
                continue
            chosen = of_view if len(rows) == len(blobs) else of_view[rows]
            for number, step in enumerate(chosen.steps):
                for name, values in step.items():
                    pipeline.feed_input(_input(view, number, name), values)
        pipeline.schedule_run()

    def _collect(
        self, pipeline: Pipeline, choices: Sequence[Choices | None], rows: NDArray[np.int64]
    ) -> list[Tensor]:
        outputs = pipeline.share_outputs()
        for output, augmentation in zip(outputs, self.augmentations, strict=True):
            expected = (*augmentation.image_hw, 3)
            if not self._resizes and any(shape != expected for shape in set(output.shape())):
                self._resizes = True
                raise RuntimeError(f"images of other sizes than {augmentation.image_hw}")
        views = [from_dlpack(output.as_tensor()) for output in outputs]
        if self.device.type == "cuda":
            # DALI would take its memory back while torch's stream still reads it. The current
            # stream is waited for: beside a training step the loader has one of its own.
            views = [decoded.clone() for decoded in views]
            torch.cuda.current_stream(self.device).synchronize()
        pipeline.release_outputs()
        if choices[0] is not None and self._in_place:
            steps = self.augmentations[0].steps
            for step, given in zip(steps, choices[0][rows].steps, strict=True):
                step.change_in_place(views[0].numpy(), given)
        return views

    def _build(self, resizes: bool) -> Pipeline:
        device_id = self.device.index or 0 if self.device.type == "cuda" else None
        # The dynamic executor (DALI's default) makes each output anew: on the CPU torch gets DALI's
        # memory itself.
        pipeline: Pipeline = _graph(
            [
                _View(each.image_hw, () if self._in_place else tuple(each.steps), each.example())
                for each in self.augmentations
            ],
            resizes,
            batch_size=self.max_batch,
            num_threads=self.threads,
            device_id=device_id,
            # runs the first batch once; a second one may still be started meanwhile
            prefetch_queue_depth=1,
        )
        _remove_generated_sources()
        pipeline.build()
        return pipeline


class Decoder:
    """Decodes batches of up to `max_batch` images into [N, height, width, 3] uint8 RGB tensors: a
    `ViewsDecoder` of one view.

    With an `augmentation`, each batch comes with the choices that it has drawn, and is changed by
    them. A call decodes one batch.
    """

    def __init__(
        self,
        image_hw: tuple[int, int],
        max_batch: int,
        augmentation: Augmentation | None = None,
        *,
        threads: int = 1,
        device: torch.device,
        takes_png: bool = False,
    ) -> None:
        augmentation = augmentation or Augmentation((), image_hw)
        assert augmentation.image_hw == image_hw
        self._views = ViewsDecoder(
            [augmentation], max_batch, threads=threads, device=device, takes_png=takes_png
        )

    def __call__(
        self, blobs: Blobs, choices: Choices | None = None
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """Images, and which of them are real; the others show the next good image of the batch
        (black if there is none)."""
        return self.finish(self.start(blobs, choices))

    def start(self, blobs: Blobs, choices: Choices | None = None) -> Decoding:
        """Begin to decode a batch in the background; `finish` it before the one that is started
        after the next."""
        return self._views.start(blobs, [choices])

    def finish(self, started: Decoding) -> tuple[Tensor, NDArray[np.bool_]]:
        """Images and which of them are real, as of a call, for batches in the order in which they
        were started."""
        (images,), good = self._views.finish(started)
        return images, good


def _remove_generated_sources() -> None:
    """Remove the files that DALI has converted the graph's functions into, once they are imported.

    DALI leaves them in the folder for temporary files until the process ends, and for ever where it
    is killed.
    """
    for name, module in sys.modules.copy().items():
        if name.startswith(_GENERATED) and module.__file__ is not None:
            Path(module.__file__).unlink(missing_ok=True)


def _pack(blobs: Blobs) -> NDArray[np.uint8] | None:
    """The blobs as rows [N, longest], zeros behind each, which DALI takes faster than a list. None
    where most of it would be zeros, and where no blob is as long as a JPEG."""
    longest, total = max(map(len, blobs), default=0), sum(map(len, blobs))
    if longest < _LEAST_BYTES or longest * len(blobs) > _PACKED_BYTES_PER_BYTE * total:
        return None
    packed = np.empty((len(blobs), longest), np.uint8)
    for row, blob in zip(packed, blobs, strict=True):
        row[: len(blob)] = blob
        row[len(blob) :] = 0
    return packed


def _usable_jpeg_or_png(blob: NDArray[np.uint8] | bytes) -> bool:
    """Say whether the bytes hold a whole JPEG or all chunks of a PNG, and are not too large. What
    stands behind does not matter."""
    return usable_jpeg(blob) or (not too_large(blob) and _whole_png(bytes(blob)))


def _whole_png(blob: bytes) -> bool:
    """Say whether the bytes hold a PNG up to its last chunk."""
    if not blob.startswith(_PNG_BEGIN):
        return False
    at = len(_PNG_BEGIN)
    while (end := at + _PNG_CHUNK_BYTES + int.from_bytes(blob[at : at + 4])) <= len(blob):
        if blob[at + 4 : at + 8] == _PNG_END:
            return True
        at = end
    return False


def _input(view: int, number: int, name: str) -> str:
    """The name in the graph of an argument of the step of this number in the view of this
    number."""
    return f"{view}.{number}.{name}"


class _View(NamedTuple):
    """What the graph makes of each image for one view."""

    image_hw: tuple[int, int]
    steps: tuple[Transform, ...]
    example: Choices
    """It has the types and shapes of the choices."""


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(views: Sequence[_View], resizes: bool) -> object:
    """JPEG bytes and choices to the images of each view. DALI converts the methods of the steps
    too, so that an `if` on a node in them splits the batch."""
    blob = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
    on_gpu = Pipeline.current().device_id is not None
    decoded = fn.decoders.image(blob, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    outputs = []
    for view, (image_hw, steps, example) in enumerate(views):
        image = decoded
        if resizes and not (steps and steps[0].takes_any_size):
            height, width = (image.shape()[axis] for axis in (0, 1))
            # DALI would resample an image that has the size already: twice the time of decoding it.
            if (height != image_hw[0]) or (width != image_hw[1]):
                image = fn.resize(image, size=image_hw, antialias=True)
        for number, step in enumerate(steps):
            given = {
                name: fn.external_source(
                    name=_input(view, number, name),
                    dtype=types.FLOAT if values.dtype == np.float32 else types.INT32,
                    ndim=values.ndim - 1,
                )
                for name, values in example.steps[number].items()
            }
            image = step.apply(fn, types, image, given, image_hw)
        outputs.append(image)
    return tuple(outputs)
