"""Faults on purpose, so that a person can rehearse on a cluster of their own what a run survives:
a plan of what is to happen to which rank, and when.

    MANYFACES_FAULTS='kill@rank=1,step=7;sleep@rank=0,step=9,phase=data,seconds=4'

The environment of the command that launches a run holds the plan, and it travels to the workers
with the configuration. Each fault is injected once in a run's life: restarted workers pass it by.
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from manyfaces.configs.errors import UserError
from manyfaces.configs.parsed import first_fault
from manyfaces.train.record import Record

VARIABLE = "MANYFACES_FAULTS"
EVENT = "fault"
"""The kind of the event that is recorded of a fault."""

Kind = Literal["kill", "term", "stop", "sleep", "raise", "enospc"]
Phase = Literal[
    "start",
    "restore",
    "data",
    "step",
    "checkpoint",
    "evaluation",
    "replacement",
    "upload",
    "checkpoint:rows",
    "checkpoint:written",
    "checkpoint:commit",
    "checkpoint:rename",
    "checkpoint:after",
]
"""The watchdog's phases, of which `replacement` is the wait of workers that Ray is about to
replace, and the moments of a checkpoint's write: before this rank writes its part, behind that,
before COMMIT.json, between it and the folder's name, and behind the commit."""
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_FORM = "write faults as 'kill@rank=1,step=7;sleep@rank=0,step=9,phase=data,seconds=4'"


class Fault(BaseModel):
    """What happens to one rank, the first time that it comes there."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Kind
    """`kill`, `term` and `stop` are the signals; `raise` is an error as of a programming mistake;
    `enospc` is what a full disk says."""
    rank: NonNegativeInt
    step: NonNegativeInt | None = None
    """The step that is begun or, in other phases, the number of those that are made; where it is
    left out the fault is injected at any."""
    phase: Phase | None = None
    """Where it is left out the fault is injected in any of the watchdog's phases, but at no moment
    of a checkpoint's write."""
    seconds: PositiveFloat | None = None
    """How long a `sleep` is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "sleep") != (self.seconds is not None):
            raise ValueError("seconds=S belongs to sleep, which needs it")
        if self.kind == "enospc" and not (self.phase or "").startswith("checkpoint:"):
            raise ValueError("enospc needs one of the phases checkpoint:...")
        return self

    def __str__(self) -> str:
        where = self.model_dump(exclude={"kind"}, exclude_none=True).items()
        return f"{self.kind}@{','.join(f'{name}={value}' for name, value in where)}"

    def is_met(self, phase: str, step: int) -> bool:
        """Whether the fault is planned for this phase, in or after this step."""
        if self.step is not None and self.step != step:
            return False
        return ":" not in phase if self.phase is None else self.phase == phase

    def happen(self, folder: Path) -> None:
        """Inject the fault into this process, whose run has this folder."""
        if self.kind in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[self.kind])
        elif self.kind == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        elif self.kind == "raise":
            raise RuntimeError(f"{VARIABLE}: {self}")
        time.sleep(self.seconds or 0)


def parse(text: str) -> tuple[Fault, ...]:
    """The faults that the text names, none in an empty one. Raises `UserError` for a word that
    cannot be read."""
    return tuple(_fault(word.strip()) for word in text.split(";") if word.strip())


def _fault(word: str) -> Fault:
    kind, _, rest = word.partition("@")
    pairs = [pair.partition("=") for pair in rest.split(",")]
    fields = {"kind": kind} | {name.strip(): value.strip() for name, _, value in pairs}
    try:
        if len(fields) <= len(pairs):
            raise UserError(f"{VARIABLE}: {word!r}: a word stands twice; {_FORM}")
        return Fault.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{VARIABLE}: {word!r}: {first_fault(error)}; {_FORM}") from error


class FaultPlan:
    """The faults of one rank. A file in the folder `markers`, which is on disk before a fault is
    injected, says that it was; a fault that is named twice is injected twice."""

    def __init__(self, faults: tuple[Fault, ...], rank: int, run: Path, markers: Path) -> None:
        self.rank, self.run, self.markers = rank, run, markers
        named: Counter[str] = Counter()
        self._left: list[tuple[Path, Fault]] = []
        for fault in faults:
            again = f".{named[str(fault)]}" if named[str(fault)] else ""
            named[str(fault)] += 1
            if fault.rank == rank:
                self._left.append((markers / f"{fault}{again}", fault))

    def reach(self, phase: str, step: int) -> None:
        """Inject what is planned for this rank as it enters the phase, `step N` or another, after
        so many steps."""
        name, _, begun = phase.partition(" ")
        at = int(begun) if name == "step" else step
        for marker, fault in self._left:
            if fault.is_met(name, at) and _mark(marker):
                told = f"rank {self.rank} in {phase!r}: {fault} ({VARIABLE})"
                facts = {"fault": str(fault), "rank": self.rank, "step": at, "phase": phase}
                Record(self.run).event(EVENT, told, **facts)
                fault.happen(self.run)


def _mark(marker: Path) -> bool:
    """Make the file and flush it to disk. Returns False where it was there already."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    for each in (descriptor, os.open(marker.parent, os.O_RDONLY)):
        os.fsync(each)
        os.close(each)
    return True
