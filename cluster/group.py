"""The process group where the launching process is a worker itself: alone, or under torchrun."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from manyfaces.cluster.device import HIDE_GPUS, worker_device
from manyfaces.cluster.meeting import meet
from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.launcher import under_torchrun

GROUP_TIMEOUT_S = 1800
FIRST_TIMEOUT_S = 12 * 3600
"""Longest that the other processes wait for what rank 0 does alone, as to read a whole dataset."""

T = TypeVar("T")


@contextlib.contextmanager
def joined(config: schema.Cluster) -> Iterator[None]:
    """The default group stands while the `with` block runs; one that stands already is left so."""
    if dist.is_initialized():
        yield
        return
    if config.gpus_per_worker == 0:
        os.environ.update(HIDE_GPUS)
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    backend = "cpu:gloo,cuda:nccl" if worker_device().type == "cuda" else "gloo"
    if under_torchrun():
        store, rank, size = meet(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed asks for them
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_alone(work: Callable[[], T], what: str, timeout_s: float = FIRST_TIMEOUT_S) -> T | None:
    """What `work()` returned on rank 0, and None on the others, which wait until it went well.

    Collective. Rank 0 raises what `work` does; the others raise `UserError`, which says for `what`
    they waited, where it failed or took longer than `timeout_s`.
    """
    result = None

    def kept() -> None:
        nonlocal result
        result = work()

    first_tells(kept, what, timeout_s)
    return result


def first_tells(work: Callable[[], T], what: str, timeout_s: float = FIRST_TIMEOUT_S) -> T:
    """What `work()` returned on rank 0, by pickle, on every rank. Collective; raises as
    `first_alone` does."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    if dist.get_rank() == 0:
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the others may have been killed as well
                dist.broadcast_object_list([False, None], 0, group=group)
            raise
        try:
            dist.broadcast_object_list([True, result], 0, group=group)
        except RuntimeError as error:
            raise UserError("rank 0: the other ranks are gone; they say why") from error
        return result
    told: list[Any] = [False, None]
    try:
        dist.broadcast_object_list(told, 0, group=group)
    except RuntimeError as error:
        raise UserError(
            f"rank {dist.get_rank()} waited for rank 0 to {what}, which ended or took more than "
            f"{timeout_s / 3600:g} h"
        ) from error
    went_well, result = told
    if not went_well:
        raise UserError(f"rank {dist.get_rank()} waited for rank 0 to {what}, which failed there")
    return cast(T, result)
