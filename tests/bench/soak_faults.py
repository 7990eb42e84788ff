"""The faults of the soak: what befalls a run that trains, and what is put right again after it."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from marked import Marked, kill
from mlflow_server import MlflowServer
from slow_store import SlowStore

from manyfaces.train.checkpoint.layout import newest
from manyfaces.train.heartbeat import read_heartbeats

DISK_BYTES = 256 << 20
AWAY_S = 8.0
"""How long a disk is full, MLflow away and the store slow."""
WRITE_S = 30.0
"""Longest wait for a checkpoint that is being written."""


@dataclass
class Session:
    """The run that faults befall, and the command that trains it at the moment."""

    run: Path
    marked: Marked
    store: SlowStore
    mlflow: MlflowServer
    process: subprocess.Popen[str]
    launcher: str
    damaged: set[int] = field(default_factory=set)
    """Inodes of the checkpoints of which a byte was flipped."""
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    """What is put right again, and when."""
    step: int = 0

    def after(self, seconds: float, mend: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, mend))

    def mend(self, *, everything: bool = False) -> None:
        """Put right what is due."""
        now = time.monotonic()
        due = [work for at, work in self.later if everything or at <= now]
        self.later = [each for each in self.later if not everything and each[0] > now]
        for work in due:
            work()

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that live."""
        alive = set(self.marked.pids())
        beats = read_heartbeats(self.run)
        return {rank: beat.pid for rank, beat in beats.items() if beat.pid in alive}


Fault = Callable[[Session, random.Random], str]
"""Does it, and says what it was; "" where there was nothing to do it to."""


def kill_rank(session: Session, rng: random.Random) -> str:
    return _signal_rank(session, rng, signal.SIGKILL, "kill -9 of")


def hang_rank(session: Session, rng: random.Random) -> str:
    return _signal_rank(session, rng, signal.SIGSTOP, "SIGSTOP of")


def _signal_rank(session: Session, rng: random.Random, number: int, what: str) -> str:
    ranks = session.ranks()
    if not ranks:
        return ""
    rank = rng.choice(sorted(ranks))
    return f"{what} rank {rank}" if kill(ranks[rank], number) else ""


def terminate(session: Session, rng: random.Random) -> str:
    if session.process.poll() is not None:
        return ""
    session.process.terminate()
    return "SIGTERM of the command"


def kill_all(session: Session, rng: random.Random) -> str:
    return f"kill -9 of all {session.marked.kill()} processes"


def kill_in_write(session: Session, rng: random.Random) -> str:
    """One rank or all, while a checkpoint is being written."""
    deadline = time.monotonic() + WRITE_S
    folder = session.run / "checkpoints"
    while not list(folder.glob("step-*.tmp-*")):
        if time.monotonic() > deadline or session.process.poll() is not None:
            return ""
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    done = rng.choice((kill_rank, kill_all))(session, rng)
    return f"{done}, while a checkpoint was written" if done else ""


def corrupt_newest(session: Session, rng: random.Random) -> str:
    """The machine dies, and a byte of the newest checkpoint is another one afterwards."""
    kill_all(session, rng)
    folder = session.run / "checkpoints"
    path = newest(folder)
    if path is None or session.damaged & {each.stat().st_ino for each in folder.iterdir()}:
        return "kill -9 of all processes"  # another damaged one stands: one whole one must be left
    file = rng.choice(sorted(each for each in path.rglob("*") if each.stat().st_size > 100))
    with file.open("r+b") as opened:
        at = rng.randrange(file.stat().st_size)
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))
    session.damaged.add(path.stat().st_ino)
    return f"kill -9 of all processes and a flipped byte in {file.relative_to(path.parent)}"


def full_disk(session: Session, rng: random.Random) -> str:
    folder = session.run / "checkpoints"
    filler = folder / "filler"
    free = os.statvfs(folder)
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - (64 << 10), 1))
    session.after(AWAY_S, lambda: filler.unlink(missing_ok=True))
    return f"a full disk for {AWAY_S:.0f} s"


def unwritable(session: Session, rng: random.Random) -> str:
    folder = session.run / "checkpoints"
    folder.chmod(0o555)
    session.after(AWAY_S, lambda: folder.chmod(0o755))
    return f"an unwritable folder of checkpoints for {AWAY_S:.0f} s"


def mlflow_away(session: Session, rng: random.Random) -> str:
    session.mlflow.kill()
    session.after(AWAY_S, session.mlflow.start)
    return f"MLflow's server killed, and started again after {AWAY_S:.0f} s"


def slow_store(session: Session, rng: random.Random) -> str:
    session.store.is_slow = True

    def mend() -> None:
        session.store.is_slow = False

    session.after(AWAY_S, mend)
    return f"a slow store for {AWAY_S:.0f} s"


def faults(has_own_disk: bool) -> dict[str, Fault]:
    """All of them by name, as this machine allows them."""
    found: dict[str, Fault] = {
        "kill": kill_rank,
        "hang": hang_rank,
        "SIGTERM": terminate,
        "kill in a write": kill_in_write,
        "damage": corrupt_newest,
        "MLflow": mlflow_away,
        "store": slow_store,
    }
    if has_own_disk:
        return {**found, "disk": full_disk}
    return found if os.getuid() == 0 else {**found, "disk": unwritable}


STOPPING = {"kill", "hang", "SIGTERM", "kill in a write", "damage"}
"""Those after which workers start anew."""


@contextlib.contextmanager
def own_disk(folder: Path) -> Iterator[bool]:
    """A small disk of its own at this folder while the block runs; whether this machine lets one
    make it."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    has = os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield has
    finally:
        if has:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
