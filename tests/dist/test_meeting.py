"""Workers that torchrun starts again meet, in a store that still has the tokens of dead ones."""

import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from manyfaces.cluster import meeting
from manyfaces.configs.errors import UserError

WORKER = """
import os
import torch.distributed as dist
from manyfaces.cluster.group import joined
from manyfaces.configs.sections.cluster import Cluster

with joined(Cluster()):
    groups = [dist.new_group(backend="gloo") for _ in range(3)]
    for group in groups:
        dist.barrier(group=group)
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    os.write(1, f"met {attempt}\\n".encode())
    if attempt != "2" and dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()
"""


@pytest.mark.slow
def test_restarted_workers_of_torchrun_make_their_groups(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for attempt in range(3):
        assert done.stdout.count(f"met {attempt}") == 2


def attempt(store: dist.Store, order: list[int]) -> list[str]:
    """The prefix that each of three ranks agrees on, which come in this order."""
    found: dict[int, str] = {}

    def one(rank: int) -> None:
        end = time.monotonic() + 60
        found[rank] = meeting._accept(store, rank, end) if rank else meeting._propose(store, 3, end)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        thread.join(0.2)
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(3)]


def test_each_attempt_agrees_on_another_prefix() -> None:
    store = dist.HashStore()
    seen = [attempt(store, order) for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1])]
    assert all(len(set(each)) == 1 for each in seen)
    assert len({each[0] for each in seen}) == 4


def test_who_waits_in_vain_is_told() -> None:
    store = dist.HashStore()
    attempt(store, [0, 1, 2])
    with pytest.raises(UserError, match="have not all met in time"):
        meeting._propose(store, 3, time.monotonic() + 0.2)
    with pytest.raises(UserError, match="have not all met in time"):
        meeting._accept(store, 1, time.monotonic() + 0.2)


def test_who_finds_nobody_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    short = timedelta(seconds=0.3)
    for rank in (0, 1):
        store = dist.HashStore()
        store.set_timeout(short)
        monkeypatch.setattr(meeting, "rendezvous", lambda *_, **__: iter([(store, rank, 2)]))  # noqa: B023
        with pytest.raises(UserError, match="have not all met in time") as told:
            meeting.meet(short)
        assert "\n" not in str(told.value)
    server = dist.TCPStore("localhost", 0, 2, is_master=True, wait_for_workers=False, timeout=short)
    monkeypatch.setattr(meeting, "rendezvous", lambda *_, **__: iter([(server, 1, 2)]))
    with pytest.raises(UserError, match="have not all met in time"):
        meeting.meet(short)


def test_a_store_that_cannot_be_reached_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="have not all met in time"):
        meeting.meet(timedelta(seconds=0.5))
