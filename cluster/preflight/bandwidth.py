"""How fast nodes exchange data: an all-reduce over all of them, and every pair by itself. One rank
stands for a node; the group is torch's, as that of a training is."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

NUM_BYTES = {"gloo": 32 << 20, "nccl": 256 << 20}
"""Bytes of a measured message: large enough that latency does not count."""
REPEATS = 3
MEET_S, GROUP_S = 20, 60
"""How long a node may take to reach the first one, and all of them to finish one exchange."""
MOST_ROUNDS = 31
"""Rounds of pairs at most, so that a thousand nodes do not take an hour: each node then has so many
partners."""


def rounds(size: int) -> list[list[int | None]]:
    """The partner of each rank in each round, None for a rank that rests; every two ranks meet once
    (the circle method of tournaments), in the first `MOST_ROUNDS` rounds of as many as that is."""
    ranks: list[int | None] = [*range(size), *([None] if size % 2 else [])]
    tournament: list[list[int | None]] = []
    for _ in range(min(len(ranks) - 1, MOST_ROUNDS)):
        partners: list[int | None] = [None] * size
        for one, other in zip(ranks[: len(ranks) // 2], reversed(ranks), strict=False):
            if one is not None and other is not None:
                partners[one], partners[other] = other, one
        tournament.append(partners)
        ranks = [ranks[0], ranks[-1], *ranks[1:-1]]
    return tournament


def open_store(address: str) -> tuple[dist.TCPStore, int]:
    """The store at which the nodes meet, on this one, and its port."""
    store = dist.TCPStore(
        address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=MEET_S)
    )
    return store, int(store.port)


def reach_store(address: str, port: int) -> dist.TCPStore:
    """The store of another node. Raises `RuntimeError` where it cannot be reached."""
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=MEET_S))


def join(store: dist.Store, backend: str, rank: int, size: int) -> None:
    """Make the group, together with all other ranks."""
    timeout = timedelta(seconds=GROUP_S)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def all_reduce_bytes_s() -> float:
    """The bus bandwidth of an all-reduce, as nccl-tests count it: the bytes that each rank has to
    send, 2 (n - 1) / n of the message, over the time. Collective."""
    size, message = dist.get_world_size(), _message()
    seconds = _best(lambda: dist.all_reduce(message))
    return float(message.nbytes * 2 * (size - 1) / size / seconds)


def pair_bytes_s(partners: Sequence[int | None]) -> list[float | None]:
    """For each round, the bytes a second that go to the partner while as many come back; None for
    a round without one. Called on all ranks at once, each with its own partners."""
    sent, received = _message(), _message()
    sign_out, sign_in = sent[:1], received[:1]

    def swap(out: torch.Tensor, into: torch.Tensor, partner: int) -> None:
        both = [dist.P2POp(dist.isend, out, partner), dist.P2POp(dist.irecv, into, partner)]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    rates: list[float | None] = []
    for partner in partners:
        if partner is None:
            rates.append(None)
            continue
        # The partner may still be in its round before.
        swap(sign_out, sign_in, partner)
        seconds = _best(lambda partner=partner: swap(sent, received, partner))  # type: ignore[misc]
        rates.append(sent.nbytes / seconds)
    return rates


def _message() -> torch.Tensor:
    backend = dist.get_backend()
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    return torch.zeros(NUM_BYTES[backend] // 4, device=device)


def _best(exchange: Callable[[], object]) -> float:
    """Seconds of the quickest of several exchanges; the first opens connections and does not
    count."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        exchange()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
