"""Real gloo ranks on this machine, for tests: processes, a file to meet at, a bound on every wait,
the first failure told."""

import datetime
import multiprocessing
import os
import pickle
import pkgutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from manyfaces import configs

FORKS = multiprocessing.get_context("forkserver")
"""Processes that are forks of one that has imported what takes seconds, and has run nothing."""
FORKS.set_forkserver_preload(
    [
        "torch.distributed.checkpoint.hf_storage",
        "manyfaces.train.cli.main",
        "manyfaces.train.session",
        "manyfaces.train.run",
        "torch._dynamo",  # which torch imports with the first optimiser
        *(module.name for module in pkgutil.walk_packages(configs.__path__, "manyfaces.configs.")),
    ]
)
_GRACE_S = 0.5  # for the first to fail to have written why, when others fail because of it


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    timeout_s: float,
    environment: dict[str, str],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    try:
        os.environ.clear()
        os.environ.update(environment)
        warnings.simplefilter("error")
        # As the engine says where it is imported, which was before this process began.
        warnings.filterwarnings("ignore", message=".*deprecated", module=r"(torch|deepspeed)\b")
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size)
        )  # as every launcher sets them
        store = dist.FileStore(f"{folder}/store", world_size)
        dist.init_process_group(
            "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        Path(folder, f"result{rank}").write_bytes(pickle.dumps(fn(*args)))
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_bytes(
            pickle.dumps((time.monotonic(), traceback.format_exc()))
        )
        raise SystemExit(1) from None


def run_ranks(
    world_size: int, fn: Callable[..., Any], *args: Any, timeout_s: float = 120
) -> list[Any]:
    """`fn(*args)` on each rank of a fresh gloo group (`dist.group.WORLD`, one thread a rank); what
    each returned, in rank order.

    Raises `RuntimeError` with the traceback of the rank that failed first, or `TimeoutError`; no
    process outlives the call. `fn` and what goes in and out must pickle; tensors are best sent as
    numpy arrays.
    """
    environment = dict(os.environ)  # which the forked process has of an earlier time
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            FORKS.Process(
                target=_rank,
                args=(r, world_size, folder, timeout_s, environment, fn, args),
                daemon=True,
            )
            for r in range(world_size)
        ]
        deadline = time.monotonic() + timeout_s
        try:
            for process in ranks:
                process.start()
            while alive := [process.sentinel for process in ranks if process.exitcode is None]:
                if not wait(alive, timeout=max(0.0, deadline - time.monotonic())):
                    break
                if any(process.exitcode for process in ranks):
                    time.sleep(_GRACE_S)
                    break
        finally:
            codes = [process.exitcode for process in ranks]
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()
                    process.close()
        errors = {
            r: pickle.loads(path.read_bytes())
            for r in range(world_size)
            if (path := Path(folder, f"error{r}")).exists()
        }
        if errors:
            first = min(errors, key=errors.__getitem__)
            raise RuntimeError(f"rank {first} of {world_size} failed:\n{errors[first][1]}")
        if any(codes):
            raise RuntimeError(f"a rank died without a word; exit codes {codes}")
        if None in codes:
            raise TimeoutError(
                f"ranks {[r for r, code in enumerate(codes) if code is None]} not done after "
                f"{timeout_s} s"
            )
        return [pickle.loads(Path(folder, f"result{r}").read_bytes()) for r in range(world_size)]
