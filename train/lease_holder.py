"""Who holds a lease: which process of which machine, and whether that one still runs."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease, as its file says."""

    id: str
    host: str
    kernel: str
    """The kernel's boot id: two processes that see the same one share locks and memory."""
    pid_space: str
    """The namespace that `pid` is counted in: containers have their own."""
    pid: int
    started: str
    """When the process was started, in ticks since boot: it tells apart two of the same pid."""
    job: str
    since: float
    locked: bool
    """Whether it has locked the file."""
    is_released: bool = False

    @classmethod
    def here(cls, id: str, *, locked: bool) -> "Holder":
        """This process."""
        pid = os.getpid()
        return cls(
            id=id,
            host=socket.gethostname(),
            kernel=_kernel(),
            pid_space=_pid_space(),
            pid=pid,
            started=_started(pid),
            job=job(),
            since=time.time(),
            locked=locked,
        )

    @classmethod
    def read(cls, body: bytes) -> "Holder | None":
        """What `to_json` gave; None for a file that is not written yet, or holds anything else."""
        try:
            told = json.loads(body)
            holder = cls(**told)
        except (ValueError, TypeError):
            return None
        texts = (
            holder.id,
            holder.host,
            holder.kernel,
            holder.pid_space,
            holder.started,
            holder.job,
        )
        fits = (
            all(isinstance(text, str) for text in texts)
            and isinstance(holder.pid, int)
            and isinstance(holder.since, int | float)
        )
        return holder if fits else None

    def to_json(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)

    def released(self) -> "Holder":
        """The same, once it has let the lease go."""
        return dataclasses.replace(self, is_released=True)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether its pid means the same process here."""
        return self.kernel == _kernel() != "" and self.pid_space == _pid_space()

    def is_dead(self, is_free: bool | None) -> bool | None:
        """Whether it has ended; None where only its heartbeat can tell. `is_free` says whether its
        file's lock could be had, None where the file system has no locks."""
        if self.is_on_this_machine and _started(self.pid) != self.started:
            return True
        if is_free is False:
            return False
        if is_free and self.locked and self.kernel == _kernel() != "":
            return True
        return False if self.is_on_this_machine else None

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}{job}, since {since}"


def job(environment: Mapping[str, str] = os.environ) -> str:
    """What started this process, for people: `Slurm job 1234`; "" where nothing is known to."""
    with_metadata = environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    try:
        ray_job = json.loads(with_metadata)["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        ray_job = ""
    known = {
        "Ray job": ray_job,
        "Slurm job": environment.get("SLURM_JOB_ID", ""),
        "torchrun job": environment.get("TORCHELASTIC_RUN_ID", "").removeprefix("none"),
    }
    return next((f"{what} {name}" for what, name in known.items() if name), "")


def _kernel() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When the process of this pid was started, in ticks since boot; "" where none runs."""
    try:
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
