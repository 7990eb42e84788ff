"""A process that dies at a chosen one of the calls by which it changes files: by SIGKILL, or as a
machine that loses its power, whose disk then has nothing but what was flushed."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CALLS = ("write", "fsync", "fdatasync", "posix_fallocate", "sendfile")
"""Those of `os` that change files, or flush them, and that Python tells no audit hook of."""
_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")
"""Python's audit events of calls that change folders; each is raised before the call."""


class _Disk:
    """What a disk would not have of the files in a folder if the power went now.

    A file that is created or renamed loses its new name until its folder is flushed; the bytes of a
    file are zeros until the file is flushed. What is removed stays removed.
    """

    def __init__(self) -> None:
        self.flushed: dict[Path, int] = {}
        """How many bytes of each file that was opened for writing are on disk."""
        self.written: dict[Path, int] = {}
        """How many bytes were written by `os.write`; buffered writes are not seen."""
        self.names: list[tuple[Path, Path | None]] = []
        """New names, each with the old one of what was renamed, that no flush has kept yet."""

    def opened(self, path: Path) -> None:
        self.made(path)
        self.flushed[path] = 0

    def made(self, path: Path) -> None:
        if not path.exists():
            self.names.append((path, None))

    def renamed(self, old: Path, new: Path) -> None:
        def moved(path: Path) -> Path:
            return new / path.relative_to(old) if path.is_relative_to(old) else path

        self.flushed = {moved(path): count for path, count in self.flushed.items()}
        self.written = {moved(path): count for path, count in self.written.items()}
        self.names = [(moved(path), before) for path, before in self.names]
        self.names.append((new, old))

    def flush(self, path: Path) -> None:
        if path.is_dir():
            self.names = [each for each in self.names if each[0].parent != path]
        elif path in self.flushed:
            self.flushed[path] = self.written.get(path, path.stat().st_size)

    def lose(self) -> None:
        """Leave in the folder what would be found there when the power is back."""
        for path, count in self.flushed.items():
            if path.exists() and (lost := path.stat().st_size - count) > 0:
                with path.open("r+b") as file:
                    file.seek(count)
                    file.write(bytes(lost))
        for path, before in reversed(self.names):
            with contextlib.suppress(FileNotFoundError):
                if before is not None:
                    path.rename(before)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


@contextlib.contextmanager
def dying_at(call: int, *, power_loss: bool) -> Iterator[None]:
    """This process dies before its call number `call`, from 1, that changes a file or a folder,
    if it comes to that one within the block. For a process of its own: the hook stays in it."""
    disk, count, is_on = _Disk(), 0, True

    def next_call() -> None:
        nonlocal count, is_on
        count += 1
        if count == call:
            is_on = False
            if power_loss:
                disk.lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, given: tuple[Any, ...]) -> None:
        if not is_on or event not in _EVENTS:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
            next_call()
            disk.opened(Path(os.fsdecode(path)))
            return
        next_call()
        if event == "os.mkdir":
            disk.made(Path(os.fsdecode(given[0])))
        elif event == "os.rename":
            disk.renamed(Path(os.fsdecode(given[0])), Path(os.fsdecode(given[1])))

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(descriptor: int, *given: Any) -> Any:
            if not is_on:
                return real(descriptor, *given)
            next_call()
            result = real(descriptor, *given)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if name in ("fsync", "fdatasync"):
                disk.flush(path)
            elif name == "write":
                disk.written[path] = os.lseek(descriptor, 0, os.SEEK_CUR)
            return result

        return called

    reals = {name: getattr(os, name) for name in _CALLS}
    for name, real in reals.items():
        setattr(os, name, counted(name, real))
    sys.addaudithook(audited)
    try:
        yield
    finally:
        is_on = False
        for name, real in reals.items():
            setattr(os, name, real)
