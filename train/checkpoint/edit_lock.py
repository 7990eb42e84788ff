"""Folders that commands write a checkpoint or its files to, such as `manyfaces head remap` and
`manyfaces checkpoint reshard`, and what killed ones have left.

    OUT.tmp-1a2b3c4d          is being written, or its writing was cut off
    .OUT.tmp-1a2b3c4d.lock    locked for as long as the command that writes it lives

The lock is the kernel's (flock): it ends with its process, however that ends. Where a file system
knows no such lock, nothing is ever taken for left behind.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_LOCK = re.compile(r"\.(.+\.tmp-[0-9a-f]{8})\.lock")


@contextlib.contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, to be renamed to it when it is whole; what is left of it in the
    end is removed."""
    folder = out.with_name(f"{out.name}.tmp-{os.urandom(4).hex()}")
    lock = _lock_of(folder)
    with lock.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def sweep_edits(parent: Path) -> None:
    """Remove what such commands that were killed have left in this folder. A failed removal stops
    nothing."""
    for lock in parent.glob(".*.lock"):
        name = _LOCK.fullmatch(lock.name)
        if name is None:
            continue
        with (
            contextlib.suppress(OSError),
            lock.open("r+") as file,
        ):  # network file systems lock nothing else
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (parent / name[1]).exists():
                shutil.rmtree(parent / name[1])
            lock.unlink()


def is_being_written(folder: Path) -> bool:
    """Whether such a command that lives writes to the folder."""
    try:
        with _lock_of(folder).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
