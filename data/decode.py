"""JPEG bytes to uint8 images by DALI, on the CPU or a GPU, augmented by choices made elsewhere. The one file that knows nvidia.dali."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from manyfaces.configs import schema
from manyfaces.data.augment import Choices
from manyfaces.data.sample import whole_jpeg

Blobs = Sequence[NDArray[np.uint8]]
_GRAY = (127, 127, 127)


class Decoder:
    """Decodes batches of up to `max_batch` images into [N, image_px, image_px, 3] uint8 RGB tensors.

    A corrupt image costs itself only, though it ends a DALI pipeline for good: the pipeline is rebuilt and the batch bisected.
    """

    def __init__(
        self, image_px: int, max_batch: int, *, augment: schema.Augment | None = None, threads: int = 1, device: torch.device
    ) -> None:
        self.image_px, self.max_batch, self.threads, self.device = image_px, max_batch, threads, device
        self.augment = augment or schema.Augment(flip=0)
        self._choice_names = _choice_names(self.augment)
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

    def _build(self) -> Pipeline:
        device_id = self.device.index or 0 if self.device.type == "cuda" else None
        pipeline: Pipeline = _graph(
            self.image_px,
            self.augment,
            self._choice_names,
            batch_size=self.max_batch,
            num_threads=self.threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        pipeline.build()
        return pipeline


def _choice_names(augment: schema.Augment) -> list[str]:
    """The fields of `Choices` that this configuration needs fed."""
    names = ["mask_anchor", "mask_shape"] if augment.mask else []
    warps = augment.shift_px or augment.scale or augment.rotate_deg or augment.crop
    names += ["matrix"] if warps else ["flip"] if augment.flip else []
    colours = augment.brightness or augment.contrast or augment.saturation or augment.gray
    names += ["brightness", "contrast", "saturation"] if colours else []
    names += ["blur_sigma"] if augment.blur else []
    names += ["low_px"] if augment.low_resolution else []
    names += ["jpeg_quality"] if augment.jpeg else []
    return names + (["erase_anchor", "erase_shape"] if augment.erase else [])


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(px: int, augment: schema.Augment, names: list[str]) -> object:
    """JPEG bytes and choices to images. An `if` on a choice splits the batch: only the images that it is about pay for the change."""
    image = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, no_copy=True)
    fed = {
        name: fn.external_source(
            name=name,
            dtype=types.INT32 if name in ("flip", "jpeg_quality") else types.FLOAT,
            ndim=2 if name == "matrix" else 1 if name.endswith(("anchor", "shape")) else 0,
        )
        for name in names
    }
    on_gpu = Pipeline.current().device_id is not None
    image = fn.decoders.image(image, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    # An image that has the size already passes through unchanged.
    image = fn.resize(image, size=(px, px), antialias=True)
    if "mask_shape" in fed:
        image = fn.erase(image, anchor=fed["mask_anchor"], shape=fed["mask_shape"], axis_names="HW", fill_value=_GRAY)
    if "matrix" in fed:
        image = fn.warp_affine(image, matrix=fed["matrix"], size=(px, px), interp_type=types.INTERP_LINEAR)
    if "flip" in fed:
        image = fn.flip(image, horizontal=fed["flip"])
    if "saturation" in fed:
        image = fn.color_twist(image, **{name: fed[name] for name in ("brightness", "contrast", "saturation")})
    if "blur_sigma" in fed:  # noqa: SIM102 - this condition is of the graph, the next one of each image
        if fed["blur_sigma"] > 0:
            image = fn.gaussian_blur(image, sigma=fed["blur_sigma"])
    if "low_px" in fed:  # noqa: SIM102
        if fed["low_px"] > 0:
            image = fn.resize(image, resize_x=fed["low_px"], resize_y=fed["low_px"], antialias=True)
            image = fn.resize(image, size=(px, px), antialias=True)
    if "jpeg_quality" in fed:  # noqa: SIM102
        if fed["jpeg_quality"] > 0:
            image = fn.jpeg_compression_distortion(image, quality=fed["jpeg_quality"])
    if "erase_shape" in fed:
        image = fn.erase(image, anchor=fed["erase_anchor"], shape=fed["erase_shape"], axis_names="HW", fill_value=_GRAY)
    return image
