"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def wait_until(done: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What `done` returns once it is true. Fails when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not (value := done()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value
