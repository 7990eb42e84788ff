"""A lock on a folder at a URL: a small object that only one process can create.

Stores decide for all at once who creates an object that is not there: S3 (`If-None-Match`), a disk
(`O_EXCL`). What holds of such a lock is less than of the kernel's:

- A process that was killed leaves it behind. Whoever waits takes it for left behind once it has
  stood unchanged for `LEFT_BEHIND_S`, so that a process which is held up for longer loses it.
- An S3-compatible store that does not know `If-None-Match` lets two processes create it.

Who writes under it therefore reads back what was written.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator

from manyfaces.configs.errors import UserError
from manyfaces.data.store.remote import Remote

LEFT_BEHIND_S = 60.0
POLL_S = 0.5


@contextlib.contextmanager
def store_lock(remote: Remote, name: str) -> Iterator[None]:
    """Hold the lock `name` below the remote's URL, after waiting for whoever has it. Raises
    `UserError` where it cannot be had within the remote's patience, counted from when another
    process took it, and for a store that fails."""
    mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}\n".encode()
    seen, since = b"", time.monotonic()
    # Where an answer was lost, the object that is there already may be this one.
    while not remote.create(name, mine) and (other := remote.read_if_there(name) or b"") != mine:
        if other != seen:
            seen, since = other, time.monotonic()
        waited_s = time.monotonic() - since
        if seen and waited_s >= LEFT_BEHIND_S:
            remote.remove(name)
        elif waited_s >= remote.patience_s:
            holder = " ".join(seen.decode(errors="replace").split()[:2])
            raise UserError(
                f"{remote.url}/{name}: held by another process ({holder}) for {waited_s:.0f} s; "
                "wait for it, or remove that file if it is gone"
            )
        else:
            time.sleep(POLL_S)
    try:
        yield
    finally:
        if remote.read_if_there(name) == mine:
            remote.remove(name)
