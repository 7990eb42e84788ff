"""The bar that long work over images shows."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ImageBar(Progress):
    """Of `total` images, with their rate and the time that is left."""

    def __init__(
        self, title: str, total: int, console: Console | None = None, *, transient: bool = False
    ) -> None:
        text, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
        super().__init__(
            text,
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeRemainingColumn(),
            console=console,
            transient=transient,
        )
        self._shown = self.add_task(title, total=total, rate="")

    def count(self, images: int) -> None:
        """So many more are done."""
        task = self.tasks[0]
        self.update(self._shown, advance=images)
        self.update(
            self._shown, rate=f"{task.completed / max(task.elapsed or 0, 1e-3):,.0f} images/s"
        )
