"""Images from pixels as they are decoded to floats as a network takes them."""

from functools import cache

import torch
from torch import Tensor

from manyfaces.configs import schema

Channels = tuple[float, float, float]


def to_input(
    images_NHWC: Tensor,
    model: schema.Backbone,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """uint8 RGB images [N, height, width, 3] to the floats that this backbone takes, [N, 3, height,
    width], on the same device; into `out` where one is given (see `normalise`)."""
    return normalise(images_NHWC, model.pixel_mean, model.pixel_std, memory_format, out)


def normalise(
    images_NHWC: Tensor,
    mean: Channels = (127.5, 127.5, 127.5),
    std: Channels = (127.5, 127.5, 127.5),
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """uint8 RGB [N, height, width, 3] to float32 [N, 3, height, width], (x - mean) / std for each
    channel; into `out` where one is given. The defaults give [-1, 1], as InsightFace's models
    expect.

    On a CPU fresh memory takes more time than the arithmetic: give the last batch's floats back as
    `out` once they are not needed.
    """
    images_NCHW = images_NHWC.permute(0, 3, 1, 2)
    if out is None:
        out = torch.empty(
            images_NCHW.shape,
            dtype=torch.float32,
            device=images_NHWC.device,
            memory_format=memory_format,
        )
    out.copy_(images_NCHW)
    return out.sub_(_by_channel(mean, out.device)).div_(_by_channel(std, out.device))


@cache
def _by_channel(values: Channels, device: torch.device) -> Tensor | float:
    """One number where the channels have the same, which is faster; else [3, 1, 1] on the device,
    copied there once."""
    if len(set(values)) == 1:
        return values[0]
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
