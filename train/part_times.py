"""Where a rank's time goes: seconds of each part of the run, without ever waiting for the device.

On CUDA a part of a step is the time between two events on the current stream, which are read once
the device has passed them; on the CPU, where work is done when a call returns, it is the host's
time.
"""

import contextlib
import time
from collections.abc import Iterator

import torch

STEP_PARTS = ("forward", "head", "backward", "optimizer")
"""Parts of a step: the network's forward pass; the objective beside it, with what ranks exchange
there; the backward pass, with the gradients' exchange where it overlaps; the rest of that exchange
and the optimiser."""
PARTS = ("data", *STEP_PARTS, "checkpoint", "evaluation")
"""All parts; `data` is the wait for the next batch."""
_MOST_UNREAD = 256

Mark = float | torch.cuda.Event


class PartTimes:
    """Seconds of each of `PARTS` since they were last taken, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part: str | None = None
        self._since: Mark = 0.0
        self._unread: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, part: str, seconds: float) -> None:
        """Count these seconds of the host."""
        self._seconds[part] += seconds

    @contextlib.contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Count what runs inside of it as seconds of the host."""
        began = time.monotonic()
        yield
        self.add(part, time.monotonic() - began)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside of it is this part; what is inside of another one is that one."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def take(self) -> dict[str, float]:
        """The seconds so far; they begin anew. What the device has not passed yet counts the next
        time."""
        self._read()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _switch(self, name: str | None) -> str | None:
        before, now = self._part, self._mark()
        if before is not None:
            if isinstance(now, float):
                assert isinstance(self._since, float)
                self._seconds[before] += now - self._since
            else:
                assert not isinstance(self._since, float)
                self._unread.append((before, self._since, now))
                if len(self._unread) >= _MOST_UNREAD:
                    self._read()
        self._part, self._since = name, now
        return before

    def _mark(self) -> Mark:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _read(self) -> None:
        """Count the parts that the device has passed, in their order."""
        passed = 0
        for part, since, until in self._unread:
            if not until.query():
                break
            self._seconds[part] += since.elapsed_time(until) / 1000
            passed += 1
        del self._unread[:passed]
