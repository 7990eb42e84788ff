"""When the host waits for a device, and how to spare it that."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def host_sync_is_free(device: torch.device) -> bool:
    """Whether the host may ask for a value without waiting for work in flight."""
    return device.type == "cpu"


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on the device. On its way to CUDA it is pinned, as the host would wait
    for a copy from other memory."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
