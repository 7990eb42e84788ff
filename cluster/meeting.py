"""Where the workers of torchrun meet, again after a restart.

torchrun's agent keeps one store for all attempts, so that restarted workers would read in it the
addresses of dead ones: https://github.com/pytorch/pytorch/issues/135712. Those of each attempt
therefore agree on a prefix of their own. The number of restarts is none, as each node's agent
counts its own.
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from manyfaces.configs.errors import UserError

_KEY = "manyfaces"
_POLL_S = 0.05
_APART = "torchrun's workers have not all met in time; see what the others say"


def meet(timeout: timedelta) -> tuple[Store, int, int]:
    """The store of this attempt, this worker's rank and the number of workers. Raises `UserError`
    where the others do not come."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        return PrefixStore(_agreed(store, rank, size, timeout), store), rank, size
    except (DistStoreError, DistNetworkError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{_APART} ({reason})") from error


def _agreed(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """The prefix of this attempt."""
    deadline = time.monotonic() + timeout.total_seconds()
    return _propose(store, size, deadline) if rank == 0 else _accept(store, rank, deadline)


def _propose(store: Store, size: int, deadline: float) -> str:
    """Rank 0's part: propose a prefix to the token of each other rank, until all have accepted."""
    prefix = uuid.uuid4().hex
    others = range(1, size)
    while True:
        tokens = [each.decode() for each in store.multi_get([_token(rank) for rank in others])]
        # A token of an earlier attempt has its proposal too, for which nobody waits.
        left = [(rank, each) for rank, each in zip(others, tokens, strict=True) if each != prefix]
        if not left:
            return prefix
        for rank, token in left:
            store.set(_proposal(rank), f"{token} {prefix}")
        _wait(deadline)


def _accept(store: Store, rank: int, deadline: float) -> str:
    """Another rank's part: give a new token, and accept the prefix that is proposed to it by
    setting it in the token's place."""
    mine = uuid.uuid4().hex
    store.set(_token(rank), mine)
    while True:
        proposal: bytes = store.get(_proposal(rank))
        token, _, prefix = proposal.decode().partition(" ")
        if token == mine:
            store.set(_token(rank), prefix)
            return prefix
        _wait(deadline)


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise UserError(_APART)
    time.sleep(_POLL_S)


def _token(rank: int) -> str:
    return f"{_KEY}/token/{rank}"


def _proposal(rank: int) -> str:
    return f"{_KEY}/proposal/{rank}"
