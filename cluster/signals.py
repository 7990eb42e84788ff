"""SIGTERM, Ctrl-C and Slurm's SIGUSR1 as requests to stop.

A thread of its own reads which signals came, so that one is taken in time while the main thread
waits in a collective. Imports nothing heavy.
"""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from manyfaces.cluster.stop import Stop, StoppedAtOnce, StoppedError, current, renewed

NAMES = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGINT: "Ctrl-C",
    signal.SIGUSR1: "SIGUSR1",
}
INTERRUPTED = 130
"""Exit code after a second Ctrl-C, as shells have it."""
_ONE_PRESS_S = 0.3
"""One Ctrl-C may come twice, from the terminal and from what started this process."""


@contextmanager
def listening(grace_s: float | None) -> Iterator[Stop]:
    """Take signals as requests to stop while the block runs, in the main thread. `grace_s` is how
    long the process may go on afterwards.

    Raises `StoppedError` for a signal that came while nothing had to be saved.
    """
    stop = renewed(grace_s)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    thread = threading.Thread(target=_read, args=(reads, stop), name="signals", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    _install()
    try:
        yield stop
    except StoppedAtOnce:
        raise StoppedError(
            f"stopped by {stop.reason}; no step was made that is not in a checkpoint; the same "
            "command goes on"
        ) from None
    finally:
        stop.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        writes.close()
        thread.join()
        reads.close()


def _install() -> None:
    for number in NAMES:
        signal.signal(number, _interrupt)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come while the block runs are taken after it, by the handlers from before it,
    and never end the processes that it starts."""
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in NAMES}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        for number, handler in handlers.items() if is_main else ():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_in_worker() -> None:
    """Take the signals of a worker process whose function runs in another thread than the main
    one; call it in the main thread. The process that launched the workers bounds the time."""
    stop = renewed(None)
    stop.raises = False

    def handler(number: int, frame: FrameType | None) -> None:
        # Ray too ends its workers by SIGTERM, to start others: that is no request to the run.
        alone = number == signal.SIGTERM
        name = NAMES[signal.Signals(number)]
        threading.Thread(target=stop.ask, args=(name,), kwargs={"alone": alone}).start()

    # Ctrl-C goes to all processes of a terminal, and is the launching process' to tell.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread once that is back in Python; the other thread knows before."""
    stop = current()
    stop.ask(NAMES[signal.Signals(number)])
    if stop.raises:
        stop.raises = False  # what ends after this is not interrupted again
        raise StoppedAtOnce


def _read(reads: socket.socket, stop: Stop) -> None:
    """Take each signal as it comes, until the other end is closed."""
    pressed_at: float | None = None
    while numbers := reads.recv(64):
        for number in numbers:
            if number not in NAMES:
                continue
            now = time.monotonic()
            if number == signal.SIGINT:
                if pressed_at is not None and now - pressed_at > _ONE_PRESS_S:
                    stop.end("a second Ctrl-C, at once", INTERRUPTED)
                pressed_at = pressed_at or now
            stop.ask(NAMES[signal.Signals(number)])
