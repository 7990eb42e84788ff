"""A sign of life of each rank in the run's folder: where it is in the run, and that it moves.

Written by a thread of its own every few seconds, so that it costs a step nothing; read by whoever
wants to name the rank that the others wait for.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from manyfaces.configs.redact import redact
from manyfaces.train.memory_use import MemoryUse, memory_use

FOLDER = ".ranks"
PERIOD_S = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """What one rank says of itself."""

    rank: int
    node: str
    step: int = 0
    """Steps of the run that it has made."""
    phase: str = "start"
    phases: int = 0
    """How many phases it has begun: all ranks go through the same ones."""
    beats: int = 0
    """Grows for as long as the process runs."""
    overdue: bool = False
    """Its watchdog has found the phase to take too long."""
    pid: int = 0
    fault: str = ""
    """The error that has ended it."""
    failed_at: float = 0.0
    """When, in seconds since 1970."""
    memory: MemoryUse = field(default_factory=MemoryUse)
    """What it held at its last beat, and what its node had left."""

    @property
    def where(self) -> str:
        """The rank and its node, for people."""
        return f"rank {self.rank} on {self.node}"


class Heart:
    """Writes the heartbeat of this rank until it is closed."""

    def __init__(self, run: Path, rank: int, period_s: float = PERIOD_S) -> None:
        self.folder, self.period_s = run / FOLDER, period_s
        self.last = Heartbeat(rank, socket.gethostname(), pid=os.getpid())
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def set(self, *, step: int, phase: str, phases: int, overdue: bool = False) -> None:
        """What the next beat says; takes no time."""
        with self._lock:
            self.last = replace(self.last, step=step, phase=phase, phases=phases, overdue=overdue)

    def fail(self, fault: str) -> None:
        """Leave the error that ends this rank, at once."""
        with self._lock:
            self.last = replace(self.last, fault=redact(fault), failed_at=time.time())
        with contextlib.suppress(OSError):
            self._write()

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()

    def _beat(self) -> None:
        # A folder that is full, gone or slow costs the sign of life, nothing else.
        while True:
            with contextlib.suppress(OSError):
                self._write()
            if self._closed.wait(self.period_s):
                return

    def _write(self) -> None:
        memory = memory_use()  # before the lock, for which a step would wait in `set`
        with self._lock:
            self.last = replace(self.last, beats=self.last.beats + 1, memory=memory)
            beat = self.last
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{beat.rank}.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(json.dumps(asdict(beat)))
        temporary.replace(path)


def read_heartbeats(run: Path) -> dict[int, Heartbeat]:
    """The last heartbeat of each rank that has left one in the run's folder; what cannot be read
    is left out."""
    beats = {}
    for path in (run / FOLDER).glob("[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            told = json.loads(path.read_bytes())
            beat = Heartbeat(**{**told, "memory": MemoryUse(**told.get("memory", {}))})
            beats[beat.rank] = beat
    return beats


def told_late(
    before: Mapping[int, Heartbeat], after: Mapping[int, Heartbeat], world_size: int, mine: int
) -> str | None:
    """Which rank the others wait for, by heartbeats that rank `mine` has read twice, more than a
    period apart; None where another rank, which is overdue too, is to tell it."""
    overdue = {rank for rank, beat in after.items() if beat.overdue} | {mine}
    silent = [
        rank
        for rank in range(world_size)
        if rank not in overdue
        and (rank not in after or (rank in before and before[rank].beats == after[rank].beats))
    ]
    known = {rank: after[rank] for rank in range(world_size) if rank in after}
    furthest = max((beat.phases for beat in known.values()), default=0)
    behind = [rank for rank, beat in known.items() if beat.phases < furthest and rank not in silent]
    waiting = sorted(overdue - set(silent) - set(behind)) or sorted(overdue)
    if mine != waiting[0]:
        return None
    if not silent and not behind:
        return "every rank has arrived, and none goes on"
    told = [_silent(rank, after.get(rank)) for rank in silent]
    told += [f"{known[r].where} has not arrived: it is in {known[r].phase!r}" for r in behind]
    return "; ".join(told)


def _silent(rank: int, beat: Heartbeat | None) -> str:
    if beat is None:
        return f"rank {rank} has never given a sign of life"
    return (
        f"{beat.where} has not arrived and gives no sign of life: its last was in {beat.phase!r}, "
        f"after step {beat.step}"
    )
