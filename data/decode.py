"""JPEG bytes to uint8 images by DALI, on the CPU or a GPU, augmented by choices made elsewhere. The one file that knows nvidia.dali."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from manyfaces.configs import schema
from manyfaces.data.augment import Choices
from manyfaces.data.sample import whole_jpeg

Blobs = Sequence[NDArray[np.uint8]]


class Decoder:
    """Decodes batches of up to `max_batch` images into [N, image_px, image_px, 3] uint8 RGB tensors.

    A corrupt image costs itself only, though it ends a DALI pipeline for good: the pipeline is rebuilt and the batch bisected.
    """

    def __init__(
        self, image_px: int, max_batch: int, *, augment: schema.Augment | None = None, threads: int = 1, device: torch.device
    ) -> None:
        self.image_px, self.max_batch, self.threads, self.device = image_px, max_batch, threads, device
        self.augment = augment or schema.Augment(flip=0)
        self._pipeline: Pipeline | None = None
        self._problem = ""

    def __call__(self, blobs: Blobs, choices: Choices | None = None) -> tuple[Tensor, NDArray[np.bool_]]:
        """Images, and which of them are real; the others show the next good image of the batch (black if there is none)."""
        good = np.array([whole_jpeg(blob) for blob in blobs], bool)
        images = torch.zeros(len(blobs), self.image_px, self.image_px, 3, dtype=torch.uint8, device=self.device)
        tried = int(good.sum())
        self._decode_into(images, blobs, choices, np.flatnonzero(good), good)
        if tried > 1 and not good.any():  # then it is not the images
            raise RuntimeError(f"DALI could not decode any of {tried} images: {self._problem}")
        if not good.all() and good.any():
            real = np.flatnonzero(good)
            stand_in = real[np.searchsorted(real, np.flatnonzero(~good)) % len(real)]
            images[torch.from_numpy(np.flatnonzero(~good))] = images[torch.from_numpy(stand_in)]
        return images, good

    def _decode_into(self, images: Tensor, blobs: Blobs, choices: Choices | None, rows: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
        if len(rows) == 0:
            return
        self._pipeline = self._pipeline or self._build()
        try:
            decoded = self._run(self._pipeline, [blobs[i] for i in rows], choices[rows] if choices else None)
        except RuntimeError as error:
            self._pipeline, self._problem = None, str(error)
            if len(rows) == 1:
                good[rows] = False
                return
            half = len(rows) // 2
            self._decode_into(images, blobs, choices, rows[:half], good)
            self._decode_into(images, blobs, choices, rows[half:], good)
        else:
            if len(rows) == len(blobs):
                images.copy_(decoded)
            else:
                images[torch.from_numpy(rows).to(self.device)] = decoded
            if self.device.type == "cuda":  # DALI reuses its buffer in the next run
                torch.cuda.current_stream(self.device).synchronize()

    def _run(self, pipeline: Pipeline, blobs: Blobs, choices: Choices | None) -> Tensor:
        pipeline.feed_input("jpeg", list(blobs))
        for name in self._choice_names:
            assert choices is not None
            pipeline.feed_input(name, getattr(choices, name))
        (output,) = pipeline.run()
        return from_dlpack(output.as_tensor())

    @property
    def _warps(self) -> bool:
        return bool(self.augment.shift_px or self.augment.scale or self.augment.rotate_deg)

    @property
    def _colours(self) -> bool:
        return bool(self.augment.brightness or self.augment.contrast or self.augment.saturation or self.augment.gray)

    @property
    def _choice_names(self) -> list[str]:
        names = ["matrix"] if self._warps else ["flip"] if self.augment.flip else []
        names += ["brightness", "contrast", "saturation"] if self._colours else []
        return names + (["erase_anchor", "erase_shape"] if self.augment.erase else [])

    def _build(self) -> Pipeline:
        device_id = self.device.index or 0 if self.device.type == "cuda" else None
        px, on_gpu = self.image_px, device_id is not None
        pipeline = Pipeline(self.max_batch, self.threads, device_id, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
        dimensions = {"matrix": 2, "erase_anchor": 1, "erase_shape": 1}
        with pipeline:
            image = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
            fed = {
                name: fn.external_source(name=name, dtype=types.INT32 if name == "flip" else types.FLOAT, ndim=dimensions.get(name, 0))
                for name in self._choice_names
            }
            image = fn.decoders.image(image, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
            # An image that has the size already passes through unchanged.
            image = fn.resize(image, size=(px, px), antialias=True)
            if self._warps:
                image = fn.warp_affine(image, matrix=fed["matrix"], size=(px, px), interp_type=types.INTERP_LINEAR)
            elif self.augment.flip:
                image = fn.flip(image, horizontal=fed["flip"])
            if self._colours:
                image = fn.color_twist(image, **{n: fed[n] for n in ("brightness", "contrast", "saturation")})
            if self.augment.erase:
                gray = (127, 127, 127)
                image = fn.erase(image, anchor=fed["erase_anchor"], shape=fed["erase_shape"], axis_names="HW", fill_value=gray)
            pipeline.set_outputs(image)
        pipeline.build()
        return pipeline
