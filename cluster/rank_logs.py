"""What each worker of Ray's prints, in a file a rank: Ray keeps it on the worker's node, under a
name of its own, and deletes it with the session."""

import os
import socket
import sys
import time
from pathlib import Path

LAST_LINES = 50
"""How much of the log of a rank that failed is shown."""
_TAIL_BYTES = 64 << 10
_STARTED = "manyfaces started:"


def log_path(folder: Path, rank: int) -> Path:
    """The log of this rank among those in `folder`."""
    return folder / f"rank-{rank:05d}.log"


def print_to(folder: Path, rank: int, world_size: int) -> None:
    """Append what this process prints from now on, C libraries included, to its rank's log. Raises
    `OSError` where that cannot be opened."""
    folder.mkdir(parents=True, exist_ok=True)
    path = log_path(folder, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    clock = time.strftime("%Y-%m-%d %H:%M:%S")
    who = f"rank {rank} of {world_size} on {socket.gethostname()}, process {os.getpid()}"
    os.write(2, f"{_STARTED} {clock} {who}\n".encode())


def last_lines(folder: Path, rank: int, count: int = LAST_LINES) -> list[str]:
    """The last lines that a rank has printed since its process was last started; none where there
    is no log of it, or where it printed nothing."""
    try:
        with log_path(folder, rank).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    printed = text.rpartition(_STARTED)
    lines = printed[2].splitlines()
    if printed[1]:  # what follows it on its line
        lines = lines[1:]
    return [line for line in lines if line.strip()][-count:]
