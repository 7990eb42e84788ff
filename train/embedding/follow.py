"""What a person sees while images are embedded: a bar, or lines where there is no terminal, and
the workers that failed."""

import threading
import time

from rich.console import Console

from manyfaces.configs.amounts import duration
from manyfaces.data.progress import ImageBar
from manyfaces.train.embedding.job import Job

_PERIOD_S = 0.5
_LINES_PERIOD_S = 30.0
"""Between lines where there is no terminal."""


class Follower:
    """Shows what the ranks say of a job while the `with` block runs. `images` are left, of `total`
    in all."""

    def __init__(self, job: Job, images: int, total: int, console: Console) -> None:
        self.job, self.images, self.total, self.console = job, images, total, console
        self.rate = 0.0
        """Images a second, from the first that was embedded; 0 before that."""
        self.failed = 0
        self._done = self._failures = 0
        self._first_at, self._first_done = 0.0, 0
        self._told_at = time.monotonic()
        self._bar = ImageBar("embedding", images, console, transient=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> "Follower":
        if self.console.is_terminal:
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.console.is_terminal:
            self._bar.stop()

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_PERIOD_S)
            done, self.failed = self.job.done()
            # Workers that were started again have counted anew.
            self._bar.count(max(done - self._done, 0))
            self._done = max(done, self._done)
            self._measure(time.monotonic())
            self._tell_failures()

    def _measure(self, now: float) -> None:
        if self._done and not self._first_at:
            self._first_at, self._first_done = now, self._done
        if self._done > self._first_done:
            self.rate = (self._done - self._first_done) / (now - self._first_at)
        if self.console.is_terminal or now - self._told_at < _LINES_PERIOD_S:
            return
        self._told_at = now
        line = f"embedded {self.total - self.images + self._done:,} of {self.total:,} images"
        if self.rate:
            left = duration((self.images - self._done) / self.rate)
            line += f", {self.rate:,.0f} images/s, {left} left"
        self.console.print(line)

    def _tell_failures(self) -> None:
        lines = self.job.failures()
        for line in lines[self._failures :]:
            self.console.print(line)
        self._failures = len(lines)
