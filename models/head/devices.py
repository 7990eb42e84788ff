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


class ToHost:
    """A tensor on its way to the host.

    Reading it waits for what the device had been asked for when the object was made, and for
    nothing that it was asked for later.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._copied = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def read(self) -> Tensor:
        """The tensor, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
