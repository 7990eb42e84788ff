"""Commands whose processes carry a mark in their environment: all that they have started is found
by it and ended, whoever its parent is by now."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

MARK = "MANYFACES_MARK"


class Marked:
    """All processes that descend from commands that were started here."""

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, words: list[str], output: IO[Any] | int = subprocess.DEVNULL, **environment: str
    ) -> subprocess.Popen[str]:
        """Start this command of the Python that runs, in a session of its own, with these further
        variables."""
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **environment, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._started.append(process)
        return process

    def pids(self) -> list[int]:
        """The processes that run, stopped ones too."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                body = (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has ended, or is another person's
                continue
            if wanted in body.split(b"\0") and state != "Z":
                found.append(int(folder.name))
        return found

    def commands(self) -> list[str]:
        """What those processes run, without its words."""
        found = []
        for pid in self.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            shown = [word.decode(errors="replace") for word in words if word[:1] != b"-"]
            found.append(" ".join(Path(word).name for word in shown[:3]).strip())
        return found

    def kill(self) -> int:
        """kill -9 of all; how many there were."""
        killed: set[int] = set()
        while alive := self.pids():
            for pid in alive:
                kill(pid)
            killed |= set(alive)
            time.sleep(0.05)
        for process in self._started:
            process.wait()
        return len(killed)


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; whether there was someone to take it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(done: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float) -> None:
    """Return once `done()` is true. Raises `RuntimeError` where the command ends before, and
    `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if process.poll() is not None and not done():
            raise RuntimeError(f"the command ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited more than {timeout_s:.0f} s")
        time.sleep(0.05)
