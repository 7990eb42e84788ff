"""The right to write a run in a store: one process on any machine has it at a time.

    URL/NAME/.lease/00000007   who launched the run, as JSON; put anew every `HEARTBEAT_S` seconds

Each holder creates the object of the next generation, which only one process can (S3's
`If-None-Match`, GCS's `ifGenerationMatch`), and removes the older ones. The workers look before
they commit a checkpoint there whether the generation of their launch is still the newest. A store
that does not know these conditions may let two processes through that begin at the same moment; the
one whose object was overwritten by then is refused.
"""

import contextlib
import json
import re
import threading
import uuid

from manyfaces.configs.errors import UserError
from manyfaces.data.store.remote import Remote
from manyfaces.train.lease import LeaseHeldError, LeaseLostError
from manyfaces.train.lease_holder import Holder

HEARTBEAT_S = 10.0
STALE_S = 60.0
"""A holder on another machine counts as dead after this long without a heartbeat."""
FOLDER = ".lease"
_NAME = re.compile(rf"{FOLDER}/(\d{{8}})")


class StoreLease:
    """A lease that this process holds until it ends or calls `release`."""

    def __init__(self, remote: Remote, number: int, holder: Holder) -> None:
        self.remote, self.number, self.holder = remote, number, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="store lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLostError` where another process has taken the run over."""
        refuse_lost_in_store(self.remote, self.number)

    def release(self) -> None:
        """Let the next one have it; a store that is away learns of it by the missing heartbeat."""
        self._ended.set()
        self._thread.join(HEARTBEAT_S)  # no longer, as the store may be away
        with contextlib.suppress(UserError):
            if _newest(self.remote) == self.number:
                self.remote.write(_name(self.number), _body(self.holder.released()))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(UserError):
                if _newest(self.remote) != self.number:
                    return
                self.remote.write(_name(self.number), _body(self.holder))


def take_store_lease(remote: Remote, *, takeover: bool) -> StoreLease:
    """The lease of the process that launches the run at the remote's URL. `takeover` takes it from
    whoever has it. Raises `LeaseHeldError` where another process has it, and `UserError` for a
    store that fails."""
    if not takeover:
        refuse_held_in_store(remote)
    number = _newest(remote) + 1
    holder = Holder.here(uuid.uuid4().hex, locked=False)
    # Where an answer was lost, the object that is there already may be this one; and one that was
    # put without a condition may have been overwritten.
    remote.create(_name(number), _body(holder))
    if (other := _holder(remote, number)) is None or other.id != holder.id:
        raise LeaseHeldError(f"{remote.url}: another process has begun to write this run")
    for name in remote.tree(FOLDER):
        if (fits := _NAME.fullmatch(name)) is not None and int(fits[1]) < number:
            remote.remove(name)
    return StoreLease(remote, number, holder)


def refuse_held_in_store(remote: Remote) -> None:
    """Raise `LeaseHeldError` where a process that is alive has the run."""
    number = _newest(remote)
    holder = _holder(remote, number) if number else None
    if holder is None or holder.is_released or holder.is_dead(None):
        return
    age_s = remote.age_s(_name(number))
    if not holder.is_on_this_machine and age_s > STALE_S:
        return
    told = f"{remote.url}: another process writes this run: {holder}, heartbeat {age_s:.0f} s ago"
    if holder.is_on_this_machine:
        raise LeaseHeldError(f"{told}; stop it (kill {holder.pid}), or give another run.name")
    raise LeaseHeldError(
        f"{told}; stop it, or give another run.name; where its machine is dead, the run is free "
        f"{STALE_S:.0f} s after the last heartbeat, or at once with --force-takeover"
    )


def refuse_lost_in_store(remote: Remote, number: int) -> None:
    """Raise `LeaseLostError` where another process has taken the run over from the launch of this
    generation; a store that does not answer takes nothing away."""
    newest, holder = number, None
    with contextlib.suppress(UserError):
        newest = _newest(remote)
        holder = _holder(remote, newest) if newest > number else None
    if newest > number:
        by = holder or "another process"
        raise LeaseLostError(f"{remote.url}: this run was taken over by {by}")


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08}"


def _body(holder: Holder) -> bytes:
    return json.dumps(holder.to_json()).encode()


def _holder(remote: Remote, number: int) -> Holder | None:
    return Holder.read(remote.read_if_there(_name(number)) or b"")


def _newest(remote: Remote) -> int:
    """The newest generation; 0 where there is none."""
    names = map(_NAME.fullmatch, remote.tree(FOLDER))
    return max((int(fits[1]) for fits in names if fits is not None), default=0)
