"""Where the feed's own work on the device stands: beside what trains there, not behind it."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class FeedStream:
    """A CUDA stream of the feed's own, on which whatever waits for the device waits for the feed
    alone; on the default stream it would wait for the training step. On the CPU it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self) -> AbstractContextManager[object]:
        """Inside of it, this thread's work on the device goes to the stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """The end of what the stream has been given so far."""
        return None if self._stream is None else self._stream.record_event()

    def take(self, tensors: Iterable[Tensor], made: torch.cuda.Event | None) -> None:
        """Let the current stream use tensors that the feed has made up to this mark. The device
        waits for them, not the host; their memory is not used anew before that stream is done."""
        if made is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(made)
        for tensor in tensors:
            tensor.record_stream(current)
