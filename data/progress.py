"""The progress bar that long work over images shows."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manyfaces.configs.redact import redact


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
