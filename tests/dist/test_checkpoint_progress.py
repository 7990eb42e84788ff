"""A slow save or restore is told from a stuck one: it beats on all ranks as long as any of them
moves bytes, and only then."""

import os
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from launcher import run_ranks
from test_checkpoint import load, snapshot

from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.train.checkpoint import progress, tensor_file
from manyfaces.train.checkpoint.finder import find
from manyfaces.train.checkpoint.progress import MOVED, watched
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.watchdog import Watchdog

LONG_S = 60
"""How long is waited for what must come."""


class Beats:
    """Counts beats."""

    def __init__(self) -> None:
        self.count, self._changed = 0, threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, LONG_S), "no beat"


def one_rank_works() -> int:
    """The last rank moves some bytes, and then none for many rounds."""
    progress.ROUND_S = 0.01
    beats = Beats()

    def work() -> None:
        if dist.get_rank() == 1:
            beats.wait_for(1)
            for more in range(2, 5):
                MOVED.add(1)
                beats.wait_for(more)
            threading.Event().wait(0.3)

    watched(work, dist.new_group(backend="gloo"), beats)
    return beats.count


def test_all_ranks_beat_as_often_as_one_moves_bytes() -> None:
    assert run_ranks(2, one_rank_works) == [4, 4]


def slow_save_and_restore(folder: Path) -> int:
    """Each part that the last rank writes waits until the one before has beaten."""
    progress.ROUND_S = progress.POLL_S = 0.01
    tensor_file.PART_BYTES = 64
    beats, real = Beats(), os.write
    parts = 0

    def write(descriptor: int, part: memoryview) -> int:
        nonlocal parts
        if dist.get_rank() == 1:
            parts += 1
            beats.wait_for(parts)
        return real(descriptor, part)

    os.write = write  # type: ignore[assignment]
    try:
        saver = Checkpointer(folder, Checkpoint(), Hooks(beat=beats))
        saver.save(snapshot(1))
        saver.wait()
    finally:
        os.write = real
    assert dist.get_rank() == 0 or parts > 3
    written = beats.count
    assert find(folder, None, saver.group, beats) is not None
    assert beats.count > written
    assert load(folder)[0] == 1
    return written


def test_a_slow_save_beats_for_each_part_and_a_restore_too(tmp_path: Path) -> None:
    assert min(run_ranks(2, slow_save_and_restore, tmp_path)) > 3


def test_a_beat_renews_the_phase_that_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    dog = Watchdog(1000, lambda line: None, rank=0)
    try:
        dog.phase("checkpoint")
        monkeypatch.setattr(dog, "_since", 0.0)
        dog.beat()
        assert dog._since > 0
        assert dog._phase == "checkpoint"
    finally:
        dog.close()
