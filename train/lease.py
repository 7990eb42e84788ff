"""The right to write a run's folder: one process has it at a time, on local and network file
systems.

    .lease-00000007    who launched the run; held from the claim to the end of the command
    .writer-00000009   rank 0 of the workers, which writes record and checkpoints

Each holder makes the file of the next generation, which only one process can (O_EXCL), and removes
the older ones; a number is never used again. The holder touches its file every `HEARTBEAT_S`
seconds, and looks whether the file still stands.
"""

import contextlib
import fcntl
import json
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from manyfaces.cluster.stop import EXIT_CODE
from manyfaces.configs.errors import UserError
from manyfaces.train.lease_holder import Holder

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A holder that cannot be asked, as it is on another machine, counts as dead after this long
without a heartbeat."""
WATCH_S = 3 * HEARTBEAT_S
"""For so long this process itself sees no heartbeat before it takes over what is stale by clocks,
one of which may have been set."""
LAUNCH, WRITER = "lease", "writer"
LAUNCH_WAIT_S = 1.0  # two commands that look at the same time may see each other's look
WRITER_WAIT_S = STALE_S + 2 * HEARTBEAT_S
_POLL_S = 0.2
_HEARD_AT: dict[tuple[Path, int], float] = {}
"""When this process first saw a file with a heartbeat, by a clock that nobody sets."""


Tell = Callable[[str], object]
"""Is given a line for people."""


class LeaseHeldError(UserError):
    """Another process has the lease."""


class LeaseLostError(UserError):
    """Another process has taken the lease over."""


class Lease:
    """A lease that this process holds until it ends or calls `release`."""

    def __init__(self, file: BinaryIO, path: Path, holder: Holder, under: "Launch | None") -> None:
        self.path, self.holder, self.under = path, holder, under
        self.on_lost: Callable[[str], None] = lambda message: None
        """Called once, by another thread, when another process has taken the lease over."""
        self._file = file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        """Tells this holder from all others."""
        return self.holder.id

    def lost(self) -> str:
        """Who has it now, in a line for people; "" while this process has it. A file system that
        does not answer takes nothing away. What this process has released it has lost."""
        folder = self.path.parent
        if self._ended.is_set():
            return f"{folder}: this process has let the run go"
        return self._lost()

    def _lost(self) -> str:
        if _is_held_by(self.path, self.id):
            return "" if self.under is None else self.under.lost()
        return _taken(self.path.parent, _kind(self.path))

    def check(self) -> None:
        """Raise `LeaseLostError` where another process has taken the lease over."""
        if told := self.lost():
            raise LeaseLostError(told)

    def release(self) -> None:
        """Let the next one have it, without waiting for anything."""
        self._ended.set()
        self._thread.join(HEARTBEAT_S)  # no longer, as the file system may hang
        with contextlib.suppress(OSError), self._file:
            if not self._lost():
                _write(self._file, self.holder.released())

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)
            if told := self._lost():
                self.on_lost(told)
                return


class Launch:
    """The launch that workers belong to: its lease has to stand while they write. An `id` of None
    is of workers that nobody launched."""

    def __init__(self, folder: Path, id: str | None) -> None:
        self.folder, self.id = folder, id

    def lost(self) -> str:
        """Who has launched the run anew, in a line for people; "" where nobody has."""
        if self.id is None:
            return ""
        try:
            _, path = _newest(self.folder, LAUNCH)
        except OSError:  # a file system that does not answer takes nothing away
            return ""
        if path is not None and _is_held_by(path, self.id):
            return ""
        return _taken(self.folder, LAUNCH)


@dataclass(frozen=True)
class _Held:
    """A lease that somebody has."""

    told: str
    """Who has it, in a line for people, and what to do."""
    holder: Holder | None
    heard_at: float
    """The time of the last heartbeat, by the clock of the file system."""
    age_s: float
    """Seconds since then."""
    can_be_asked: bool
    """It is known to live; else its next heartbeat tells."""


def take_launch(folder: Path, tell: Tell = lambda line: None, *, takeover: bool = False) -> Lease:
    """The lease of the process that launches the run in this folder, which exists. `takeover` takes
    it from whoever has it. Raises `LeaseHeldError` within about a second, or once a holder that
    cannot be asked was watched for `WATCH_S` to `STALE_S`; `tell` is given the line that says so
    before."""
    return _take(folder, LAUNCH, LAUNCH_WAIT_S, tell, takeover=takeover)


def take_writer(launch: Launch) -> Lease:
    """The lease of rank 0 of a launch, once a writer of an earlier one has ended. This process ends
    with `EXIT_CODE` when another one takes either lease over. Raises `LeaseLostError` where the
    launch's is lost already, `LeaseHeldError` where a writer does not end."""
    lease = _take(launch.folder, WRITER, WRITER_WAIT_S, under=launch)
    lease.on_lost = _end_process
    return lease


def refuse_held(folder: Path, tell: Tell = lambda line: None) -> None:
    """Raise `LeaseHeldError` where another process launched the run and is alive; changes nothing.

    One on a machine that cannot be asked is waited for until its next heartbeat, which it is
    refused for, or until it counts as dead; `tell` is given the line that says so before.
    """
    deadline = time.monotonic() + LAUNCH_WAIT_S
    first, is_told = _held(folder, LAUNCH, tell), False
    while (held := _held(folder, LAUNCH, tell)) is not None:
        is_silent = first is not None and not held.can_be_asked and held.heard_at == first.heard_at
        if not is_silent and time.monotonic() > deadline:
            raise LeaseHeldError(held.told)
        if is_silent and not is_told and held.age_s > 2 * HEARTBEAT_S:
            is_told = True
            tell(
                f"{folder}: {held.holder} has given no sign of life for {held.age_s:.0f} s; if "
                f"none comes, it counts as dead and this command goes on in "
                f"{STALE_S - held.age_s:.0f} s, or at once with --force-takeover"
            )
        time.sleep(_POLL_S)


def _take(
    folder: Path,
    kind: str,
    wait_s: float,
    tell: Tell = lambda line: None,
    *,
    takeover: bool = False,
    under: Launch | None = None,
) -> Lease:
    deadline = time.monotonic() + wait_s
    while True:
        if under is not None and (told := under.lost()):
            raise LeaseLostError(told)
        held = None if takeover else _held(folder, kind, tell)
        if held is None and (lease := _make_next(folder, kind, under)) is not None:
            return lease
        if time.monotonic() > deadline:
            raise LeaseHeldError(_begun(folder) if held is None else held.told)
        time.sleep(_POLL_S)


def _make_next(folder: Path, kind: str, under: Launch | None) -> Lease | None:
    """The next generation, if nobody else makes it at this moment."""
    number = _newest(folder, kind)[0] + 1
    path = folder / f".{kind}-{number:08}"
    try:
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), "r+b")
    except FileExistsError:
        return None
    try:
        holder = Holder.here(uuid.uuid4().hex, locked=_lock(file) is True)
        _write(file, holder)
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    # Whoever paused before it made the file may have made one that was taken and left meanwhile.
    if _newest(folder, kind)[0] != number:
        file.close()
        path.unlink(missing_ok=True)
        return None
    for older, earlier in _generations(folder, kind):
        if older < number:
            earlier.unlink(missing_ok=True)
    return Lease(file, path, holder, under)


def _held(folder: Path, kind: str, tell: Tell) -> _Held | None:
    """Who has the lease and is alive; None where nobody is. `tell` is given a line before a holder
    that cannot be asked is watched."""
    _, path = _newest(folder, kind)
    if path is None:
        return None
    try:
        file = path.open("r+b")  # NFS locks only what is open for writing
    except FileNotFoundError:  # taken over this moment
        return _Held(_begun(folder), None, 0.0, 0.0, can_be_asked=True)
    with file:
        holder = Holder.read(file.read())
        if holder is not None and holder.is_released:
            return None
        is_free = None if holder is None else _lock(file)
        is_dead = None if holder is None else holder.is_dead(is_free)
        heard = os.fstat(file.fileno())
        age_s = _now(folder, holder) - heard.st_mtime
    if is_dead:
        return None
    if is_dead is None and _is_silent(path, heard.st_mtime_ns, age_s, f"{holder}", tell):
        return None
    can_be_asked = holder is None or is_dead is not None
    told = _held_line(folder, holder, age_s)
    return _Held(told, holder, heard.st_mtime, age_s, can_be_asked=can_be_asked)


def _held_line(folder: Path, holder: Holder | None, age_s: float) -> str:
    who = str(holder or "another process")
    told = f"{folder}: another process writes this run: {who}, heartbeat {max(age_s, 0):.0f} s ago"
    if holder is not None and holder.is_on_this_machine:
        return f"{told}; stop it (kill {holder.pid}), or give another run.name"
    return (
        f"{told}; stop it, or give another run.name; where its machine is dead, the run is free "
        f"{STALE_S:.0f} s after the last heartbeat, or at once with --force-takeover"
    )


def _begun(folder: Path) -> str:
    return f"{folder}: another process has begun to write this run"


def _is_silent(path: Path, heard_ns: int, age_s: float, who: str, tell: Tell) -> bool:
    """Whether the holder has given no sign of life for `STALE_S`. `age_s` since the last may be
    wrong, as clocks of several machines make it: a file that is older is watched for `WATCH_S`, and
    one from the future, which a dead holder may have left, for `STALE_S`. `tell` is given the line
    that says so."""
    first_s = _HEARD_AT.setdefault((path, heard_ns), time.monotonic())
    if abs(age_s) <= STALE_S:
        return False
    watched_s = WATCH_S if age_s > 0 else STALE_S
    if (left_s := first_s + watched_s - time.monotonic()) > 0:
        last = f"{age_s:.0f} s ago" if age_s > 0 else f"{-age_s:.0f} s from now, as clocks differ"
        tell(
            f"{path.parent}: {who} gave its last sign of life {last}; if none comes, it counts as "
            f"dead and this command goes on in {left_s:.0f} s; manyfaces train --force-takeover "
            "takes the run at once"
        )
    while time.monotonic() - first_s < watched_s:
        time.sleep(_POLL_S)
        try:
            with path.open("rb") as file:  # a look without opening may be an old one on NFS
                if os.fstat(file.fileno()).st_mtime_ns != heard_ns:
                    return False
        except FileNotFoundError:
            return False
    return True


def _taken(folder: Path, kind: str) -> str:
    """Who has taken the lease over; "" where the file system does not answer."""
    try:
        _, path = _newest(folder, kind)
    except OSError:
        return ""
    holder = None
    if path is not None:
        with contextlib.suppress(OSError):
            holder = Holder.read(path.read_bytes())
    if holder is None:
        return f"{folder}: this process may not write the run any more: its lease was removed"
    return f"{folder}: this run was taken over by {holder}"


def _generations(folder: Path, kind: str) -> list[tuple[int, Path]]:
    names = re.compile(rf"\.{kind}-(\d{{8}})")
    return sorted(
        (int(fits[1]), path) for path in folder.iterdir() if (fits := names.fullmatch(path.name))
    )


def _newest(folder: Path, kind: str) -> tuple[int, Path | None]:
    try:
        return max(_generations(folder, kind))
    except (FileNotFoundError, ValueError):  # no folder, or no lease in it
        return 0, None


def _kind(path: Path) -> str:
    return path.name[1:].partition("-")[0]


def _is_held_by(path: Path, wanted: str) -> bool:
    """Whether the file stands with this holder; yes where the file system does not answer."""
    try:
        holder = Holder.read(path.read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return holder is None or holder.id == wanted


def _lock(file: BinaryIO) -> bool | None:
    """Whether the file's lock could be had; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _now(folder: Path, holder: Holder | None) -> float:
    """The time by the clock that the holder's heartbeats have."""
    if holder is not None and holder.is_on_this_machine:
        return time.time()
    with tempfile.TemporaryFile(dir=folder) as now:  # by the clock of the file system's server
        return os.fstat(now.fileno()).st_mtime


def _write(file: BinaryIO, holder: Holder) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(holder.to_json()).encode())
    file.flush()
    os.fsync(file.fileno())


def _end_process(message: str) -> None:
    """Whatever this process still does would be done to another one's run."""
    try:
        print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the process ends
    finally:
        os._exit(EXIT_CODE)
