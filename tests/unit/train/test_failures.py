"""Which worker failed first, and what the record says of it."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from manyfaces.cluster.rank_logs import log_path
from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.train.failures import (
    KILLED,
    first_to_fail,
    memory_words,
    next_line,
    workers_failed,
)
from manyfaces.train.folder import RunFolder
from manyfaces.train.follow import Follower
from manyfaces.train.heartbeat import FOLDER, Heart, Heartbeat, read_heartbeats
from manyfaces.train.memory_use import MemoryUse
from manyfaces.train.record import METRICS, Record, last_event

RESET = "gloo: Read error: Connection reset by peer"


@pytest.fixture(scope="module")
def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_the_launcher_saw_die_comes_before_what_failed_because_of_it() -> None:
    causes = {0: f"failed: {RESET}", 1: "died: its node was lost"}
    assert first_to_fail(causes, {}) == (1, "died: its node was lost")


def test_a_killed_process_is_found_where_the_launcher_knows_only_the_others(
    ended_pid: int,
) -> None:
    here = socket.gethostname()
    beats = {
        0: Heartbeat(0, here, fault=RESET, failed_at=5.0),
        1: Heartbeat(1, here, pid=ended_pid),
    }
    assert first_to_fail({0: f"failed: {RESET}"}, beats) == (1, KILLED)
    elsewhere = {0: beats[0], 1: Heartbeat(1, "node7", pid=ended_pid)}
    assert first_to_fail({0: f"failed: {RESET}"}, elsewhere)[0] == 1


def test_a_rank_that_hangs_is_named_and_not_those_that_end_because_of_it(ended_pid: int) -> None:
    here = socket.gethostname()
    waited = Heartbeat(0, here, phase="step 8", phases=20, overdue=True, pid=ended_pid)
    beats = {
        0: waited,
        1: Heartbeat(1, here, phase="data", phases=19, pid=os.getpid()),
        2: replace(waited, rank=2, fault=RESET, failed_at=5.0),
    }
    causes = {0: "died: its process was killed, or had no memory left", 2: f"failed: {RESET}"}
    told = (
        1,
        "has hung: it was last heard of in 'data', and the others waited for longer than "
        "cluster.step_timeout_s",
    )
    assert first_to_fail(causes, beats) == told
    # One that only sleeps is overdue itself.
    assert first_to_fail(causes, beats | {1: replace(beats[1], overdue=True)}) == told
    # One that was killed hangs for the others too.
    assert first_to_fail(causes, beats | {1: replace(beats[1], pid=ended_pid)}) == (1, KILLED)


def test_a_clock_that_is_wrong_blames_nobody_for_what_another_began() -> None:
    beats = {
        0: Heartbeat(0, "a", fault=RESET, failed_at=5.0),
        1: Heartbeat(1, "b", fault="no label 7", failed_at=3605.0),
    }
    assert first_to_fail({0: "failed"}, beats) == (1, "failed: no label 7")


def test_ranks_of_a_larger_session_before_are_not_blamed(
    tmp_path: Path, ended_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyfaces.train.failures._SETTLE_S", 0)
    tree = {"run": {"dir": str(tmp_path), "name": "r"}, "model": {"kind": "vit"}}
    config = Config.model_validate(tree)
    run = Path(config.run.dir) / config.run.name
    Record(run).event("start", "2 workers", world_size=2, step=4)
    (run / FOLDER).mkdir()
    for beat in (
        Heartbeat(0, "a", step=6),
        Heartbeat(1, "a", step=6, fault="no label 7", failed_at=9.0),
        Heartbeat(3, socket.gethostname(), step=90, pid=ended_pid),
    ):
        (run / FOLDER / f"{beat.rank}.json").write_text(json.dumps(asdict(beat)))
    payload = {"config": config.model_dump(mode="json")}
    workers_failed(payload, {1: "failed: no label 7"}, 1)
    told = last_event(run, "worker_failed")
    assert told is not None
    assert told["message"].startswith("rank 1 on a failed: no label 7; step 6; restart 1")


def test_of_errors_the_first_is_told() -> None:
    beats = {
        0: Heartbeat(0, "a", fault=RESET, failed_at=5.1),
        1: Heartbeat(1, "b", fault="no label 7", failed_at=5.0),
    }
    assert first_to_fail({0: f"failed: {RESET}"}, beats) == (1, "failed: no label 7")


def test_without_heartbeats_the_launchers_word_is_told() -> None:
    assert first_to_fail({2: "failed: x", 1: "failed: y"}, {}) == (1, "failed: y")


@pytest.mark.parametrize(
    ("limit", "count", "saved", "line"),
    [
        (3, 1, True, "restart 1 of 3 goes on from step 10: 2 steps done again"),
        (-1, 4, False, "restart 4 goes on from step 10: 2 steps done again"),
        (3, 4, False, "no restart is left of cluster.max_failures=3"),
        (0, 1, True, "no restart is left of cluster.max_failures=0"),
        (
            3,
            4,
            True,
            "restart, from which on they are counted anew, goes on from step 10: 2 steps done "
            "again",
        ),
    ],
)
def test_how_the_run_goes_on(limit: int, count: int, saved: bool, line: str) -> None:
    config = Config.model_validate({"model": {"kind": "vit"}, "cluster": {"max_failures": limit}})
    assert next_line(config, count, 12, 10, saved=saved) == line


def test_the_event_tells_rank_node_cause_and_steps(tmp_path: Path, ended_pid: int) -> None:
    recipe = tmp_path / "recipe.yaml"
    tree = {"run": {"dir": str(tmp_path), "name": "r"}, "model": "vit", "data": {"path": "x"}}
    recipe.write_text(yaml.safe_dump(tree))
    config = load(str(recipe), [])
    run = tmp_path / "r"
    Record(run).metrics(12, loss=1.0)
    heart = Heart(run, 0, period_s=60)
    heart.fail(RESET)
    heart.close()
    payload = {"name": "r", "config": config.model_dump(mode="json")}
    workers_failed(payload, {0: f"failed: {RESET}", 1: "died: its node was lost"}, 1)
    event = last_event(run, "worker_failed")
    assert event is not None
    assert event["message"] == (
        "rank 1 died: its node was lost; step 12; restart 1 of 3 goes on from step 0: 12 steps done "
        "again"
    )
    assert (event["rank"], event["step"]) == (1, 12)
    assert (run / METRICS).exists()


def test_what_the_rank_printed_last_is_told_with_it(tmp_path: Path) -> None:
    tree = {"run": {"dir": str(tmp_path), "name": "r"}, "model": {"kind": "vit"}}
    config = Config.model_validate(tree)
    folder = RunFolder.of(config)
    folder.logs.mkdir(parents=True)
    log_path(folder.logs, 1).write_text("manyfaces started: now\nTraceback\nno label 7\n")
    payload = {"config": config.model_dump(mode="json")}
    console = Console(width=150, record=True, file=(tmp_path / "shown").open("w"))
    with Follower(folder.path, 20, console, {}):
        workers_failed(payload, {1: "failed: no label 7"}, 1)
    console.file.close()
    shown = console.export_text().splitlines()
    assert "failed: no label 7" in shown[0]
    assert shown[1:] == [
        f"the last lines of {log_path(folder.logs, 1)}:",
        "  Traceback",
        "  no label 7",
    ]


def test_a_failure_whose_log_is_not_named_is_shown_all_the_same(tmp_path: Path) -> None:
    console = Console(width=150, record=True, file=(tmp_path / "shown").open("w"))
    with Follower(tmp_path, 20, console, {}):
        Record(tmp_path).event("worker_failed", "rank 1 is gone", last_lines=["no label 7"])
    console.file.close()
    assert console.export_text().splitlines()[1:] == ["the last lines of its log:", "  no label 7"]


FULL = MemoryUse(used=8_600_000_000, free=200_000_000, total=23_000_000_000)


def test_a_rank_that_had_no_memory_left_says_so_and_what_was_planned() -> None:
    beat = Heartbeat(1, "a", memory=FULL)
    assert memory_words(KILLED, beat, 5_400_000_000) == (
        " (its process held 8.01 GiB, and its node had 191 MiB of 21.4 GiB left; the run's plan is "
        "5.03 GiB a worker, see plan.txt)"
    )
    told = "failed: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert memory_words(told, None, 5_400_000_000) == (
        " (the run's plan is 5.03 GiB a worker, see plan.txt)"
    )


def test_nothing_is_said_of_memory_where_there_was_enough_or_another_reason() -> None:
    spacious = Heartbeat(1, "a", memory=replace(FULL, free=9_000_000_000))
    assert memory_words(KILLED, spacious, 1) == ""
    assert memory_words(KILLED, None, 1) == ""
    assert memory_words("failed: no label 7", Heartbeat(1, "a", memory=FULL), 1) == ""
    assert memory_words(KILLED, Heartbeat(1, "a"), 1) == ""  # the system does not tell


def test_each_beat_tells_the_memory_of_this_process_and_node(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0, period_s=60)
    heart.fail("the end")
    heart.close()
    told = read_heartbeats(tmp_path)[0].memory
    meminfo = Path("/proc/meminfo").read_text()
    in_all = int(meminfo.split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < told.used < told.total <= in_all
    assert 0 < told.free < told.total
