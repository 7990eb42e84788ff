"""A bound on every wait: a step that takes too long ends its process with rank, phase and all
stacks, so that the launcher restarts it.

DeepSpeed's groups ignore the process group's timeout, and a train thread that hangs in a collective
still answers Ray's health check.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable

TELL_S = 10
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: worth another try


class Watchdog:
    """Ends the process with `EXIT_CODE` where a phase takes longer than `timeout_s` seconds, after
    it has told so and printed all stacks."""

    def __init__(self, timeout_s: float, tell: Callable[[str], None], rank: int) -> None:
        self.timeout_s, self.tell, self.rank = timeout_s, tell, rank
        self._phase, self._since = "start", time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def phase(self, name: str) -> None:
        """The process is alive and begins something new."""
        self._phase, self._since = name, time.monotonic()

    def beat(self) -> None:
        """What it is at gets on, if slowly."""
        self._since = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self.timeout_s / 4, 5.0)):
            if time.monotonic() - self._since > self.timeout_s:
                line = (
                    f"rank {self.rank} has been in {self._phase!r} for more than "
                    f"{self.timeout_s:.0f} s (cluster.step_timeout_s)"
                )
                # The shared folder that it is told to may be what hangs.
                telling = threading.Thread(target=self.tell, args=(line,), daemon=True)
                telling.start()
                telling.join(TELL_S)
                try:
                    faulthandler.dump_traceback(all_threads=True)
                finally:
                    os._exit(EXIT_CODE)
