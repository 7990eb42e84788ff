"""What a person sees of a run: one progress line, events as they happen, a table at the end. Read
from the run's record, so it is the same whether the workers are threads away or nodes away."""

import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from manyfaces.train.record import EVENTS, METRICS, parse

PERIOD_S = 0.5
PLAIN_PERIOD_S = 30.0  # between lines where there is no terminal


class Follower:
    """Shows a run's record while the `with` block runs; only what is written after it was made."""

    def __init__(self, folder: Path, num_steps: int, console: Console) -> None:
        self.folder, self.num_steps, self.console = folder, num_steps, console
        self._read_to = {
            name: (folder / name).stat().st_size if (folder / name).exists() else 0
            for name in (EVENTS, METRICS)
        }
        self._shown_at = -PLAIN_PERIOD_S
        self._last: dict[str, Any] = {}
        text = TextColumn("{task.description}")
        columns = (
            text,
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        )
        self._task = self._bar.add_task("training", total=num_steps, figures="starting workers")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def __enter__(self) -> "Follower":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.stop()

    def _follow(self) -> None:
        while True:
            ended = self._ended.wait(PERIOD_S)
            for row in self._new_rows(EVENTS):
                self.console.print(
                    f"[dim]{time.strftime('%H:%M:%S', time.localtime(row['time']))}[/dim] "
                    f"{escape(row['message'])}"
                )
            for row in self._new_rows(METRICS):
                self._last |= row
                if "train/loss" in row:
                    self._show(row)
            if ended:
                return

    def _show(self, row: dict[str, Any]) -> None:
        figures = f"loss {row['train/loss']:.3f}  {row['images_per_s']:,.0f} images/s"
        if accuracy := [
            f"{k.rpartition('/')[0]} {v:.1%}"
            for k, v in self._last.items()
            if k.endswith("/accuracy")
        ]:
            figures += "  " + " ".join(accuracy)
        self._bar.update(self._task, completed=row["step"], figures=figures)
        if not self.console.is_terminal and (
            time.monotonic() - self._shown_at > PLAIN_PERIOD_S or row["step"] == self.num_steps
        ):
            self._shown_at = time.monotonic()
            self.console.print(f"step {row['step']}/{self.num_steps}  {figures}")

    def _new_rows(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return []
        if path.stat().st_size < self._read_to[name]:  # metrics were rewound by a resume
            self._read_to[name] = path.stat().st_size
        with path.open("rb") as file:
            file.seek(self._read_to[name])
            whole = file.read().rpartition(b"\n")[0]
        self._read_to[name] += len(whole) + 1 if whole else 0
        return parse(whole.decode())


def summary_table(metrics: list[dict[str, Any]], wall_s: float) -> Table:
    """Steps, rate, loss, wall time, and each verification set's accuracy and TARs, from the run's
    last rows."""
    last: dict[str, Any] = {}
    rates = [row["images_per_s"] for row in metrics if "images_per_s" in row]
    for row in metrics:
        last |= row
    table = Table(show_header=False, title="manyfaces")
    table.add_row("steps", f"{last.get('step', 0):,}")
    if rates:
        table.add_row("images/s (median)", f"{sorted(rates)[len(rates) // 2]:,.0f}")
        table.add_row("loss", f"{last['train/loss']:.3f}")
    for key in sorted(k for k in last if k.endswith("/accuracy")):
        name = key.removesuffix("/accuracy")
        table.add_row(f"{name}: accuracy (10-fold)", f"{last[key]:.2%}")
        table.add_row(f"{name}: accuracy (best threshold)", f"{last[f'{name}/best_accuracy']:.2%}")
        if f"{name}/auc" in last:
            table.add_row(f"{name}: AUC", f"{last[f'{name}/auc']:.4f}")
        for far in ("1e-02", "1e-03"):
            tar = last.get(f"{name}/tar_at_far_{far}")
            table.add_row(
                f"{name}: TAR at FAR {far}",
                f"{tar:.2%}" if tar is not None else "too few pairs to tell",
            )
    table.add_row("training time", f"{last.get('minutes', 0):.1f} min")
    table.add_row("wall time of this command", f"{wall_s / 60:.1f} min")
    return table
