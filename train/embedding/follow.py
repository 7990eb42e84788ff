"""What a person sees while images are embedded: how many are done, and which ranks have failed."""

import threading
import time
from collections.abc import Callable

from rich.console import Console

from manyfaces.data.progress import image_progress
from manyfaces.train.embedding.job import Job

_PERIOD_S = 0.5


class Follower:
    """Shows what the ranks say of a job while the `with` block runs; `images` are left to embed."""

    def __init__(self, job: Job, images: int, console: Console) -> None:
        self.job, self.images, self.console = job, images, console
        self.rate = 0.0
        """Images a second, from the first that was embedded; 0 before that."""
        self._done = self._failures = 0
        self._first: tuple[float, int] | None = None
        self._progress = image_progress("embedding", console)
        self._show: Callable[[int, int], None] = lambda done, total: None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> "Follower":
        self._show = self._progress.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._progress.__exit__(None, None, None)

    def _follow(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_PERIOD_S)
            # Ranks that were started again have counted anew.
            self._done = max(self.job.done()[0], self._done)
            self._show(self._done, self.images)
            self._measure(time.monotonic())
            lines = self.job.failures()
            for line in lines[self._failures :]:
                self.console.print(line)
            self._failures = len(lines)

    def _measure(self, now: float) -> None:
        if self._first is None and self._done:
            self._first = now, self._done
        elif self._first is not None and self._done > self._first[1]:
            self.rate = (self._done - self._first[1]) / (now - self._first[0])
