"""What a request to stop means for a run: events in its record, and the line that says how to go
on."""

import contextlib
import shutil
from collections.abc import Callable, Iterator

from manyfaces.cluster.stop import FILE, Stop, current, torchrun_restarts
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.layout import newest
from manyfaces.train.folder import RunFolder
from manyfaces.train.heartbeat import FOLDER as RANKS
from manyfaces.train.record import EVENTS, Record, read_rows

INTERRUPTED = "interrupted"
"""The kind of the event with which a run ends that was asked to stop."""


def share_stop(config: Config, folder: RunFolder, *, looks: bool = True) -> Stop:
    """The request of this process, from now on one with those of all processes of the run."""
    stop = current()

    def tell(reason: str, ends: bool) -> None:
        record = Record(folder.path)
        if not ends:
            record.event("saving", f"{reason}: what was trained is saved, and the run goes on")
            return
        line = (
            f"{reason}: what was trained is saved and the run stops, within "
            f"{config.cluster.grace_s:g} s (cluster.grace_s); Ctrl-C again ends it at once"
        )
        if reason == "SIGTERM" and torchrun_restarts() > 0:
            line += "; where torchrun sent it because a worker is gone, all are started again"
        record.event("stopping", line)

    stop.tell = tell
    stop.share(folder.path, looks=looks)
    return stop


def forget_session(folder: RunFolder) -> None:
    """Requests to an earlier session are none to this one, and its ranks' signs of life are none of
    this one's. Only for who has claimed the run."""
    (folder.path / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder.path / RANKS, ignore_errors=True)


@contextlib.contextmanager
def finishing(wait: Callable[[], None]) -> Iterator[None]:
    """Where all ranks end the block alike, by `UserError`, `wait` for the checkpoint that is being
    written, before another process may have the run. Where one has failed that cannot be: the lease
    then refuses the commit."""
    try:
        yield
    except UserError:
        with contextlib.suppress(UserError):  # what ended the block is the reason to tell
            wait()
        raise


def stopped_line(folder: RunFolder, reason: str) -> str:
    """One line: what asked for the end, what is safe, how to go on."""
    path = newest(folder.checkpoints)
    if path is None:
        return f"stopped by {reason} before the first checkpoint; the same command begins anew"
    return f"stopped by {reason}; the same command goes on from {path}"


def count_starts(folder: RunFolder) -> Callable[[], bool]:
    """Whether workers have begun to train since this was called."""
    before = _starts(folder)
    return lambda: _starts(folder) > before


def _starts(folder: RunFolder) -> int:
    return sum(row["kind"] == "start" for row in read_rows(folder.path / EVENTS))
