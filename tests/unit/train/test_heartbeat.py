"""Which rank the others wait for, by the signs of life that each leaves."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from manyfaces.train import heartbeat
from manyfaces.train.heartbeat import FOLDER, Heart, Heartbeat, read_heartbeats, told_late
from manyfaces.train.memory_use import MemoryUse
from manyfaces.train.waiting import Waiting


def waiting(rank: int, **more: int | str | bool) -> Heartbeat:
    beat = Heartbeat(rank, f"node{rank}", step=11, phase="step 12", phases=30, beats=5)
    return replace(beat, **more)  # type: ignore[arg-type]


def moved(beats: dict[int, Heartbeat], *still: int) -> dict[int, Heartbeat]:
    """The same a little later: all but `still` have beaten."""
    return {
        rank: beat if rank in still else replace(beat, beats=beat.beats + 3)
        for rank, beat in beats.items()
    }


def test_a_rank_that_gives_no_sign_of_life_is_named_and_not_who_tells() -> None:
    before = {0: waiting(0, overdue=True), 1: waiting(1, phase="data", phases=29)}
    told = told_late(before, moved(before, 1), 2, mine=0)
    assert told == (
        "rank 1 on node1 has not arrived and gives no sign of life: its last was in 'data', after "
        "step 11"
    )


def test_a_rank_that_lives_and_is_behind_is_named() -> None:
    before = {0: waiting(0, overdue=True), 1: waiting(1), 2: waiting(2, phase="data", phases=29)}
    told = told_late(before, moved(before), 3, mine=0)
    assert told == "rank 2 on node2 has not arrived: it is in 'data'"


def test_of_ranks_that_are_overdue_the_first_tells() -> None:
    before = {
        0: waiting(0, phase="data", phases=29),
        1: waiting(1, overdue=True),
        2: waiting(2, overdue=True),
    }
    after = moved(before, 0, 1)  # rank 1 has told and ended
    assert told_late(before, after, 3, mine=2) is None
    told = told_late(before, after, 3, mine=1)
    assert told is not None
    assert told.startswith("rank 0 on node0 has not arrived and gives no sign")
    assert "rank 1" not in told


def test_a_rank_that_waits_for_its_data_names_itself() -> None:
    before = {0: waiting(0), 1: waiting(1, phase="data", phases=29, overdue=True)}
    told = told_late(before, moved(before), 2, mine=1)
    assert told == "rank 1 on node1 has not arrived: it is in 'data'"


def test_a_rank_without_a_sign_of_life_and_ranks_that_all_arrived() -> None:
    before = {0: waiting(0, overdue=True)}
    assert told_late(before, before, 2, mine=0) == "rank 1 has never given a sign of life"
    before[1] = waiting(1)
    told = told_late(before, moved(before), 2, mine=0)
    assert told == "every rank has arrived, and none goes on"


def test_heartbeats_are_written_and_read_and_strange_files_passed_over(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 3, period_s=60)
    try:
        heart.set(step=7, phase="step 8", phases=12)
        heart.fail("no memory")
        for name, body in (("4", b"{"), ("5", b"7"), ("6", b'{"rank": 6, "x": 1}'), ("7", b"\xff")):
            (tmp_path / FOLDER / f"{name}.json").write_bytes(body)
        (beat,) = read_heartbeats(tmp_path).values()
    finally:
        heart.close()
    assert (beat.rank, beat.step, beat.phase, beat.phases) == (3, 7, "step 8", 12)
    assert (beat.fault, beat.pid) == ("no memory", os.getpid())
    assert beat.beats > 0


def test_a_step_does_not_wait_while_the_memory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart, could_set = Heart(tmp_path, 0, period_s=60), []

    def reads() -> MemoryUse:
        could_set.append(heart._lock.acquire(timeout=1))
        if could_set[-1]:
            heart._lock.release()
        return MemoryUse(used=5)

    monkeypatch.setattr(heartbeat, "memory_use", reads)
    heart.fail("the end")
    heart.close()
    assert could_set
    assert all(could_set)
    assert read_heartbeats(tmp_path)[0].memory.used == 5


def test_workers_that_are_waited_for_are_told_every_so_often() -> None:
    waiting_for = Waiting(100.0, lambda: "2 workers are wanted, the cluster has 1 CPUs")
    old = {0: waiting(0), 1: waiting(1)}  # of an earlier session
    told = {now: waiting_for.lines(float(now), old, None) for now in range(100, 146)}
    assert {now: lines for now, lines in told.items() if lines} == {
        120: ["waiting for the workers since 20 s: 2 workers are wanted, the cluster has 1 CPUs"],
        140: ["waiting for the workers since 40 s: 2 workers are wanted, the cluster has 1 CPUs"],
    }


def test_a_rank_that_falls_silent_is_told_while_the_others_live() -> None:
    waiting_for = Waiting(0.0, str)
    told = {}
    for now in range(0, 60, 5):
        beats = {0: waiting(0, beats=now), 1: waiting(1, beats=min(now, 20)), 7: waiting(7)}
        told[now] = waiting_for.lines(float(now), beats, 2)
    assert {now: lines for now, lines in told.items() if lines} == {
        40: ["rank 1 on node1 has given no sign of life for 20 s, since 'step 12'"]
    }
