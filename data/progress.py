"""What long work over images shows of its progress: a bar, or lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manyfaces.configs.amounts import duration
from manyfaces.configs.redact import redact

_LINES_PERIOD_S = 10.0
"""Between lines where there is no terminal."""


class ImageBar(Progress):
    """A progress bar of `total` images, with their rate and the time that is left."""

    def __init__(
        self, title: str, total: int, console: Console | None = None, *, transient: bool = False
    ) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
        )
        self._images = self.add_task(redact(title), total=total, rate="")

    def count(self, images: int) -> None:
        """Say that so many more images are done."""
        self.update(self._images, advance=images)
        task = self.tasks[0]
        rate = task.completed / max(task.elapsed or 0, 1e-3)
        self.update(self._images, rate=f"{rate:,.0f} images/s")


@contextmanager
def image_progress(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many images are done while the block runs; gives a function that is told how many
    are, and of how many in all."""
    if not console.is_terminal:
        yield _lines(title, console)
        return
    done_before = 0
    with ImageBar(title, 0, console, transient=True) as bar:

        def show(done: int, total: int) -> None:
            nonlocal done_before
            bar.update(bar.task_ids[0], total=total)
            bar.count(done - done_before)
            done_before = done

        yield show


def _lines(title: str, console: Console) -> Callable[[int, int], None]:
    began = told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < _LINES_PERIOD_S or not done:
            return
        told = now
        rate = done / (now - began)
        left = duration((total - done) / rate)
        console.print(f"{title}: {done:,} of {total:,} images, {rate:,.0f} images/s, {left} left")

    return tell
