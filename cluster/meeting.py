"""Where the workers of torchrun meet, again after a restart.

torchrun's agent keeps one store for all attempts, so that restarted workers would read in it the
addresses of dead ones: https://github.com/pytorch/pytorch/issues/135712. Those of each attempt
therefore agree on a prefix of their own. The number of restarts is none, as each node's agent
counts its own.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from manyfaces.configs.errors import UserError

_KEY = "manyfaces"
_POLL_S = 0.05


def meet(timeout: timedelta) -> tuple[Store, int, int]:
    """The store of this attempt, this worker's rank and the number of workers. Raises `UserError`
    where the others do not come."""
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    deadline = time.monotonic() + timeout.total_seconds()
    prefix = _give(store, size, deadline) if rank == 0 else _get(store, rank, deadline)
    return PrefixStore(prefix, store), rank, size


def _give(store: Store, size: int, deadline: float) -> str:
    """Rank 0's part: answer what each of the others says until it says the prefix."""
    prefix = uuid.uuid4().hex
    others = range(1, size)
    while True:
        said = [word.decode() for word in store.multi_get([_said(rank) for rank in others])]
        # A word of an earlier attempt is answered too, and nobody waits for that answer.
        left = [(rank, word) for rank, word in zip(others, said, strict=True) if word != prefix]
        if not left:
            return prefix
        for rank, word in left:
            store.set(_answer(rank), f"{word} {prefix}")
        _wait(deadline)


def _get(store: Store, rank: int, deadline: float) -> str:
    """Another rank's part: say a word that nobody has said before, until rank 0 has heard it."""
    mine = uuid.uuid4().hex
    store.set(_said(rank), mine)
    while True:
        answer: bytes = store.get(_answer(rank))
        heard, _, prefix = answer.decode().partition(" ")
        if heard == mine:
            store.set(_said(rank), prefix)
            return prefix
        _wait(deadline)


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise UserError("torchrun's workers have not all met in time; see what the others say")
    time.sleep(_POLL_S)


def _said(rank: int) -> str:
    return f"{_KEY}/said/{rank}"


def _answer(rank: int) -> str:
    return f"{_KEY}/answer/{rank}"
