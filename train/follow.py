"""What a person sees of a run: one progress line, events as they happen, a table at the end. Read
from the run's record, so it is the same whether the workers are threads away or nodes away."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from manyfaces.train.evaluation.result import QuantitiesByName
from manyfaces.train.evaluation.tables import headlines, summary_rows
from manyfaces.train.heartbeat import read_heartbeats
from manyfaces.train.record import EVENTS, METRICS, parse
from manyfaces.train.stopping import INTERRUPTED
from manyfaces.train.waiting import Waiting

PERIOD_S = 0.5
LOOK_PERIOD_S = 4.0  # at the ranks' heartbeats
PLAIN_PERIOD_S = 30.0  # between lines where there is no terminal


class Follower:
    """Shows a run's record while the `with` block runs; only what is written after it was made.

    `quantities` describe what the run's protocols record; `resources` says what the workers need
    and what there is of it, while they are waited for.
    """

    def __init__(
        self,
        folder: Path,
        num_steps: int,
        console: Console,
        quantities: QuantitiesByName,
        resources: Callable[[], str] = str,
    ) -> None:
        self.folder, self.num_steps, self.console = folder, num_steps, console
        self.quantities = quantities
        self.resources = resources
        self._waiting: Waiting | None = Waiting(time.monotonic(), resources)
        self._world_size: int | None = None
        self._nodes: int | None = None  # not counted yet since the workers were started
        self._starts = 0
        self._looked_at = 0.0
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
            TextColumn("{task.fields[figures]}", markup=False),
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
                self._follow_workers(row)
                if row["kind"] == INTERRUPTED:  # the command's last line says it
                    continue
                self._print(row["time"], row["message"])
                if "table" in row:
                    self.console.print(_table(**row["table"]))
                if row.get("last_lines"):
                    self._print_log(row)
            for row in self._new_rows(METRICS):
                self._last |= row
                if {"train/loss", "images_per_s"} <= row.keys():
                    self._show(row)
            if ended:
                return
            if self._waiting is not None and time.monotonic() - self._looked_at > LOOK_PERIOD_S:
                self._looked_at = time.monotonic()
                beats = read_heartbeats(self.folder)
                for line in self._waiting.lines(time.monotonic(), beats, self._world_size):
                    self._print(time.time(), line)

    def _follow_workers(self, event: dict[str, Any]) -> None:
        """How many workers there are, and whether they still have something to do."""
        if event["kind"] == "start":
            self._world_size, self._nodes = event.get("world_size"), None
        elif event["kind"] == "ready":  # the first step of workers that were just started
            self._starts += 1
        if event["kind"] in ("start", "worker_failed"):
            self._waiting = Waiting(time.monotonic(), self.resources)
        elif event["kind"] in ("finished", "stopped", INTERRUPTED):
            self._waiting = None

    def _print(self, time_s: float, message: str) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(time_s))
        self.console.print(Text.assemble((clock, "dim"), f" {message}"))

    def _print_log(self, failed: dict[str, Any]) -> None:
        """What the rank that failed had printed last."""
        self.console.print(Text(f"the last lines of {failed.get('log', 'its log')}:", "dim"))
        for line in failed["last_lines"]:
            self.console.print(Text(f"  {line}", "dim"))

    def _show(self, row: dict[str, Any]) -> None:
        figures = f"loss {row['train/loss']:.3f}  {row['images_per_s']:,.0f} images/s"
        if results := headlines(self.quantities, self._last):
            figures += f"  {results}"
        figures += self._workers()
        self._bar.update(self._task, completed=row["step"], figures=figures)
        if not self.console.is_terminal and (
            time.monotonic() - self._shown_at > PLAIN_PERIOD_S or row["step"] == self.num_steps
        ):
            self._shown_at = time.monotonic()
            if "train/lr" in row:
                figures += f"  lr {row['train/lr']:.3g}"
            left_s = self._bar.tasks[0].time_remaining
            if left_s:
                figures += f"  {timedelta(seconds=round(left_s))} left"
            self.console.print(Text(f"step {row['step']}/{self.num_steps}  {figures}"))

    def _workers(self) -> str:
        """On how many nodes the workers are, where that is more than one, and how often they were
        started anew; "" where there is nothing to tell."""
        if self._nodes is None:
            beats = read_heartbeats(self.folder)
            ranks = range(self._world_size or 0)
            self._nodes = len({beats[rank].node for rank in ranks if rank in beats})
        told = f"  {self._world_size} workers on {self._nodes} nodes" * (self._nodes > 1)
        restarts = max(self._starts - 1, 0)
        return told + f"  {restarts} restart{'s' * (restarts > 1)}" * (restarts > 0)

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
        return parse(whole, name)


def _table(columns: list[str], rows: list[list[object]]) -> Table:
    """A table as an event holds it."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def summary_table(
    metrics: list[dict[str, Any]], quantities: QuantitiesByName, wall_s: float
) -> Table:
    """Steps, rate, loss, wall time, and the numbers of each protocol, from the run's last rows."""
    last: dict[str, Any] = {}
    rates = [row["images_per_s"] for row in metrics if "images_per_s" in row]
    for row in sorted(
        metrics, key=lambda row: row["step"]
    ):  # any checkpoint may be evaluated later
        last |= row
    table = Table(show_header=False, title="manyfaces")
    table.add_row("steps", f"{last.get('step', 0):,}")
    if rates:
        table.add_row("images/s (median)", f"{sorted(rates)[len(rates) // 2]:,.0f}")
    if "train/loss" in last:
        table.add_row("loss", f"{last['train/loss']:.3f}")
    for label, text in summary_rows(quantities, last):
        table.add_row(label, text)
    table.add_row("training time", f"{last.get('minutes', 0):.1f} min")
    table.add_row("wall time of this command", f"{wall_s / 60:.1f} min")
    return table
