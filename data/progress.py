"""What long work over images shows of its progress: a bar, or lines where there is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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


class Shown(Protocol):
    """What is told of the progress of work over images, and of other work in between."""

    def __call__(self, done: int, total: int) -> None:
        """So many images are done, of so many."""

    def rows(self, title: str, done: int, total: int) -> None:
        """So many rows of the other work of this title are done, of so many."""


@contextmanager
def image_progress(title: str, console: Console) -> Iterator[Shown]:
    """Show how many images are done while the block runs; gives what is told how many are, and of
    how many in all."""
    if not console.is_terminal:
        yield _Lines(title, console)
        return
    with ImageBar(title, 0, console, transient=True) as bar:
        yield _Bars(bar)


class _Bars:
    """A bar for the images, and one for the rows that are worked on at the moment."""

    def __init__(self, bar: ImageBar) -> None:
        self._bar, self._done = bar, 0
        self._title, self._rows, self._began = "", bar.add_task("", visible=False, rate=""), 0.0

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._bar.task_ids[0], total=total)
        self._bar.count(done - self._done)
        self._done = done

    def rows(self, title: str, done: int, total: int) -> None:
        if title != self._title:
            self._title, self._began = title, time.monotonic()
            self._bar.reset(self._rows, description=redact(title), visible=True)
        rate = done / max(time.monotonic() - self._began, 1e-3)
        told = f"{rate:,.0f} rows/s"
        self._bar.update(self._rows, completed=done, total=total, rate=told, visible=done < total)


class _Lines:
    """Lines, one in so many seconds."""

    def __init__(self, title: str, console: Console, unit: str = "images") -> None:
        self._title, self._console, self._unit = title, console, unit
        self._began = self._told = time.monotonic()
        self._of_rows: dict[str, _Lines] = {}

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told < _LINES_PERIOD_S or not done:
            return
        self._told = now
        rate, unit = done / (now - self._began), self._unit
        left = duration((total - done) / rate)
        self._console.print(
            f"{self._title}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left} left"
        )

    def rows(self, title: str, done: int, total: int) -> None:
        if title not in self._of_rows:
            self._of_rows[title] = _Lines(redact(title), self._console, "rows")
        self._of_rows[title](done, total)
