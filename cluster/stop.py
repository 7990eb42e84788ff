"""A request to stop, and the time that is left for it: one flag a process, which signals, a file in
the run's folder and Ray's notices set, and which the train loop reads between two steps.

Imports nothing heavy: it has to be there before torch is.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from manyfaces.configs.errors import UserError

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h, of every process that ends by itself so that the run can go on: the
same command does."""
FILE = ".stop"
"""In the run's folder, with the reason: processes that no signal reaches look for it."""

_POLL_S = 0.2
_SAVING_SHARE = 0.8
"""Part of the time of grace that a checkpoint may take; the rest is for telling MLflow."""
_NOTHING_TO_SAVE_S = 4.0
_LAST_WORDS_S = 5.0


class StoppedError(UserError):
    """The run was asked to stop, and did: exit code `EXIT_CODE`."""


class StoppedAtOnce(KeyboardInterrupt):
    """Raised by a signal where nothing has to be saved; like Ctrl-C, it is no `Exception`."""


class Stop:
    """Whether this process was asked to stop, why, and how it ends if that takes too long.

    The process ends by itself once `grace_s` is over (None: another process sees to that), and a
    few seconds after the request where nothing has to be saved.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self.grace_s = grace_s
        self.raises = True
        """A signal interrupts the main thread; else it only sets the flag."""
        self.saves = False
        """There are steps that a checkpoint has to save: the whole time of grace may pass."""
        self.wants_checkpoint = False
        """A checkpoint is wanted at the next step, and no end."""
        self.has_paused = False
        """The process waits behind a checkpoint until it is replaced."""
        self.tell: Callable[[str, bool], None] = lambda reason, ends: None
        """Told of a request by the process that it came to first, and whether the run is to end or
        only to save."""
        self.warn: Callable[[str, str], None] | None = None
        """Records what went wrong beside the training, by kind and message; None until there is a
        record."""
        self.last_words: Callable[[str], None] = _say
        """Called with the reason before the process ends by force."""
        self._reason: str | None = None
        self._is_alone = False
        self._pauses_until = 0.0
        self._asked_at = 0.0
        self._file: Path | None = None
        self._was_there = False
        """The file was there when it was last looked for."""
        self._closed = threading.Event()
        self._lock = threading.RLock()  # a signal may come while the main thread asks

    @property
    def reason(self) -> str | None:
        """What asked for the end; None where nothing did."""
        return self._reason

    @property
    def requested(self) -> bool:
        """Something has asked for a checkpoint and the end."""
        return self._reason is not None

    def ask(self, reason: str, *, alone: bool = False) -> None:
        """Ask this process to stop, and by the file all others of the run; with `alone` they learn
        of it only between two steps."""
        if not self._take(reason, alone=alone) or alone:
            return
        is_first = True
        if self._file is not None:
            try:
                with self._file.open("x") as file:
                    file.write(reason)
            except FileExistsError:
                is_first = False
            except OSError:  # the folder is gone or full: this process stops all the same
                pass
        if is_first:
            with contextlib.suppress(OSError):  # nor must a record that cannot be written hinder it
                self.tell(reason, True)

    def save(self, *, pause_s: float = 0.0) -> None:
        """Ask this process for a checkpoint at the next step, and to make none behind it for so
        long, as it is about to be replaced: what it does then would be done again."""
        if pause_s:
            self._pauses_until = time.monotonic() + pause_s
        self.wants_checkpoint = True

    @property
    def pause_s(self) -> float:
        """How long this process is to wait behind its next checkpoint."""
        return max(self._pauses_until - time.monotonic(), 0.0)

    def pause(self, seconds: float, beat: Callable[[], None]) -> None:
        """Wait so long, or until the run is to stop; `beat` is called all the while."""
        until, self.has_paused = time.monotonic() + seconds, True
        # Ray ends workers that it replaces by a signal: that is no reason to make another step.
        while time.monotonic() < until and (self._reason is None or self._is_alone):
            beat()
            time.sleep(_POLL_S)
            self.look()
        self.has_paused, self._pauses_until = False, 0.0

    def check(self) -> None:
        """Raise `StoppedError` if this process was asked to stop."""
        if self._reason is not None:
            raise StoppedError(self._reason)

    def share(self, folder: Path, *, looks: bool = True) -> None:
        """From now on requests to this process are told to the others of the run, by a file in this
        folder; with `looks` theirs are known here too."""
        self._file, shared = folder / FILE, self._file is not None
        if looks and not shared:
            threading.Thread(target=self._look, name="stop", daemon=True).start()

    def leave(self) -> None:
        """From now on nobody else learns of requests to this process: the run is another one's."""
        self._file, self.tell = None, lambda reason, ends: None

    def wait_for_checkpoint(self) -> None:
        """From now on a request waits for a checkpoint between two steps."""
        self.raises, self.saves = False, True

    def end(self, why: str, code: int = EXIT_CODE) -> None:
        """End this process now, after its last words."""
        # They may be what hangs.
        speaking = threading.Thread(target=self.last_words, args=(why,), daemon=True)
        speaking.start()
        speaking.join(_LAST_WORDS_S)
        os._exit(code)

    def close(self) -> None:
        """Nothing ends this process by force any more."""
        self._closed.set()

    def _take(self, reason: str, *, alone: bool = False) -> bool:
        with self._lock:
            if self._reason is not None:
                self._is_alone &= alone
                return False
            self._asked_at = time.monotonic()
            self._reason, self._is_alone = reason, alone
        if self.grace_s is not None:
            threading.Thread(target=self._guard, name="grace", daemon=True).start()
        return True

    def look(self) -> None:
        """Take a request that the file tells of."""
        if self._file is None or (self._reason is not None and not self._is_alone):
            return
        with contextlib.suppress(OSError):
            reason = self._file.read_text()
            # Who makes the file writes the reason next; on a full disk it stays empty.
            if reason or self._was_there:
                self._take(reason or "a request")
            self._was_there = True

    def _look(self) -> None:
        while not self._closed.wait(_POLL_S) and self._reason is None:
            self.look()

    def _guard(self) -> None:
        assert self.grace_s is not None
        while not self._closed.wait(_POLL_S):
            limit = self.grace_s * _SAVING_SHARE
            if not self.saves:
                limit = min(limit, _NOTHING_TO_SAVE_S)
            if time.monotonic() - self._asked_at > limit:
                short = ", in too short a time for a checkpoint (cluster.grace_s)"
                self.end(f"{self._reason}{short if self.saves else ''}", exit_code())


def _say(reason: str) -> None:
    os.write(2, f"stopped by {reason}; the same command goes on\n".encode())


def exit_code() -> int:
    """The exit code of a run that was asked to stop: 0 where torchrun would take any other for a
    failure and start the workers again."""
    return 0 if torchrun_restarts() > 0 else EXIT_CODE


def torchrun_restarts() -> int:
    """How often torchrun would still start the workers again; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - int(
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    )


_current = Stop()


def current() -> Stop:
    """The request of this process."""
    return _current


def renewed(grace_s: float | None) -> Stop:
    """The request of this process, as if there had been none before."""
    global _current
    _current.close()
    _current = Stop(grace_s)
    return _current


def run_in_thread(work: Callable[[], object], saves: Callable[[], bool]) -> None:
    """Do the work in a thread and wait for it, and raise what it raises. In the main thread Ray
    would take Ctrl-C for itself, and signals would wait for it; as it is, a signal sets the flag of
    this process and the work goes on. Once it is set, `saves` says whether there is what the time
    of grace is for."""
    stop, faults = current(), list[BaseException]()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            faults.append(error)

    stop.raises = False
    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        stop.saves = stop.requested and saves()
    if faults:
        raise faults[0]
