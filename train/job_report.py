"""What the driver of a submitted job says of its run every few seconds: read from the run's record,
so that it costs the workers nothing."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manyfaces.cluster.status_file import status_path
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder, run_url
from manyfaces.train.heartbeat import read_heartbeats
from manyfaces.train.job_status import PERIOD_S, JobStatus
from manyfaces.train.record import EVENTS, METRICS, parse, read_rows
from manyfaces.train.stopping import INTERRUPTED

_TAIL_BYTES = 1 << 16
"""How much of the metrics is read, from their end: many rows, of which the newest is wanted."""
_STATES = {
    "start": "starting",
    "worker_failed": "restarting",
    "saving": "saving",
    "stopping": "stopping",
    "finished": "finished",
    "stopped": "failed",
    INTERRUPTED: "stopped",
}
"""What the run does since the last event of this kind."""


@contextlib.contextmanager
def told_to_cluster(config: Config, folder: RunFolder, num_steps: int) -> Iterator[None]:
    """Say how the run stands while the block runs, and once more at its end, where this process is
    the driver of a submitted job; otherwise do nothing."""
    path = status_path()
    if path is None:
        yield
        return
    reader = StatusReader(config, folder, num_steps)
    ended = threading.Event()

    def tell() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(PERIOD_S)
            # A full disk costs the status, nothing else.
            with contextlib.suppress(OSError):
                _write(path, json.dumps(redacted(asdict(reader.read()))))

    thread = threading.Thread(target=tell, name="job-status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


class StatusReader:
    """Reads how a run stands from its folder; restarts count from when this was made."""

    def __init__(self, config: Config, folder: RunFolder, num_steps: int) -> None:
        self.folder, self.num_steps = folder, num_steps
        self.batch_size = config.train.batch_size
        self.where = run_url(config) or str(folder.path)
        self._events: list[dict[str, Any]] = []
        self._events_bytes = -1
        self._before = len(read_rows(folder.path / EVENTS))

    def read(self) -> JobStatus:
        """How the run stands now."""
        events, measured = self._read_events(), last_measured(self.folder.path / METRICS)
        mine = events[self._before :]
        starts = [row for row in mine if row["kind"] == "start"]
        began = starts[-1] if starts else None
        state = state_of(mine)
        step = measured["step"] if measured else None
        if began is not None and (measured is None or began["time"] > measured["time"]):
            step = began.get("step", step)  # what was measured behind it is made again
        elif began is not None and state == "starting":
            state = "training"
        rate = measured["images_per_s"] if measured else None
        saved = [row for row in events if row["kind"] == "checkpoint"]
        checkpoint = saved[-1] if saved else {}
        world_size = began.get("world_size") if began else None
        return JobStatus(
            folder=self.where,
            state=state,
            step=step,
            num_steps=self.num_steps,
            loss=measured["train/loss"] if measured else None,
            images_per_s=rate,
            seconds_left=self._seconds_left(step, rate),
            restarts=max(len(starts) - 1, 0),
            failures=sum(row["kind"] == "worker_failed" for row in mine),
            workers=world_size,
            nodes=self._nodes(world_size or 0),
            checkpoint_step=checkpoint.get("step"),
            checkpoint_time=checkpoint.get("time"),
            time=time.time(),
        )

    def _seconds_left(self, step: int | None, images_per_s: float | None) -> float | None:
        if step is None or not images_per_s:
            return None
        return max(self.num_steps - step, 0) * self.batch_size / images_per_s

    def _read_events(self) -> list[dict[str, Any]]:
        path = self.folder.path / EVENTS
        size = path.stat().st_size if path.exists() else 0
        if size != self._events_bytes:
            self._events, self._events_bytes = read_rows(path), size
        return self._events

    def _nodes(self, world_size: int) -> tuple[str, ...]:
        beats = read_heartbeats(self.folder.path)
        return tuple(sorted({beat.node for rank, beat in beats.items() if rank < world_size}))


def state_of(events: Sequence[dict[str, Any]]) -> str:
    """What a run does after these events of one job."""
    kinds = (row["kind"] for row in reversed(events))
    return next((_STATES[kind] for kind in kinds if kind in _STATES), "starting")


def last_measured(path: Path) -> dict[str, Any] | None:
    """The newest row of these metrics that has the loss and the rate of a step."""
    try:
        with path.open("rb") as file:
            start = max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0)
            file.seek(start)
            body = file.read()
    except OSError:
        return None
    rows = parse(body.partition(b"\n")[2] if start else body, METRICS)
    fits = (row for row in reversed(rows) if {"train/loss", "images_per_s"} <= row.keys())
    return next(fits, None)
