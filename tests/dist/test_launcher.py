import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks


def fail_on_one() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the reason")
    dist.all_reduce(torch.ones(1))


def die() -> None:
    os._exit(7)


def sleep() -> None:
    time.sleep(600)


def test_the_first_failure_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 failed:.*KeyError: 'the reason'"):
        run_ranks(2, fail_on_one)
    assert not multiprocessing.active_children()


def test_a_silent_death_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"exit codes \[7\]"):
        run_ranks(1, die)


def test_no_wait_is_without_end() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0\]"):
        run_ranks(1, sleep, timeout_s=2)
    assert not multiprocessing.active_children()
