"""A bound on every wait: a step that takes too long ends its process with the rank that did not
arrive, its phase and all stacks, so that the launcher restarts it.

DeepSpeed's groups ignore the process group's timeout, and a train thread that hangs in a collective
still answers Ray's health check.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from manyfaces.cluster.stop import EXIT_CODE
from manyfaces.train.heartbeat import PERIOD_S, Heart, read_heartbeats, told_late

TELL_S = 10


class Watchdog:
    """Ends the process with `EXIT_CODE` where a phase takes longer than `timeout_s` seconds, after
    it has told which rank is late, and printed all stacks.

    The ranks know of each other by heartbeats in the folder `run`. `entered` is called with each
    phase that begins and the number of steps that are made.
    """

    def __init__(
        self,
        timeout_s: float,
        tell: Callable[[str], None],
        rank: int,
        world_size: int = 1,
        run: Path | None = None,
        entered: Callable[[str, int], None] = lambda phase, step: None,
    ) -> None:
        self.timeout_s, self.tell, self.rank, self.world_size = timeout_s, tell, rank, world_size
        self.run, self.entered = run, entered
        self._period_s = min(timeout_s / 4, PERIOD_S)
        self._heart = None if run is None else Heart(run, rank, self._period_s)
        self._phase, self._since = "start", time.monotonic()
        self._phases, self._step = 0, 0
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def phase(self, name: str) -> None:
        """The process is alive and begins something new, or is further on in the same."""
        self._phases += name != self._phase
        self._phase, self._since = name, time.monotonic()
        self._beat()
        self.entered(name, self._step)

    def made(self, step: int) -> None:
        """The run has made this many steps."""
        self._step = step
        self._beat()

    def beat(self) -> None:
        """What it is at gets on, if slowly."""
        self._since = time.monotonic()

    def fail(self, error: BaseException) -> None:
        """This error ends the rank: the others are to know who was the first."""
        if self._heart is not None:
            self._heart.fail((str(error).strip().splitlines() or [repr(error)])[-1])

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._heart is not None:
            self._heart.close()

    def _beat(self, *, overdue: bool = False) -> None:
        if self._heart is not None:
            self._heart.set(
                step=self._step, phase=self._phase, phases=self._phases, overdue=overdue
            )

    def _watch(self) -> None:
        while not self._closed.wait(self._period_s):
            since = self._since
            if time.monotonic() - since > self.timeout_s:
                self._beat(overdue=True)
                # The shared folder that it is told to may be what hangs.
                telling = threading.Thread(target=self._tell_who, args=(since,), daemon=True)
                telling.start()
                telling.join(TELL_S + 3 * self._period_s)
                if self._since != since:  # it was slow, and has moved on meanwhile
                    self._beat()
                    continue
                try:
                    faulthandler.dump_traceback(all_threads=True)
                finally:
                    os._exit(EXIT_CODE)

    def _tell_who(self, since: float) -> None:
        line = (
            f"rank {self.rank} has been in {self._phase!r} for more than {self.timeout_s:.0f} s "
            "(cluster.step_timeout_s)"
        )
        if self._heart is None or self.run is None or self.world_size == 1:
            self.tell(line)
            return
        before = read_heartbeats(self.run)
        # Every rank that still runs writes in this time, and says if it is overdue itself.
        time.sleep(3 * self._period_s)
        late = told_late(before, read_heartbeats(self.run), self.world_size, self.rank)
        if late is not None and self._since == since:
            self.tell(f"{late}; {line}")
