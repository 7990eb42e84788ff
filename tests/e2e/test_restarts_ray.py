"""Workers that Ray loses more often than `cluster.max_failures`, each time behind a new
checkpoint."""

import os
import signal
from pathlib import Path

import pytest
from commands import recipe, rows, started, wait_until

from manyfaces.train.heartbeat import read_heartbeats

pytestmark = pytest.mark.slow
STEPS = 30


def test_the_run_goes_on_for_as_long_as_it_saves(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        dataset_path,
        checkpoint={"every_steps": 5},
        cluster={"workers": 2, "max_failures": 1},
    )
    run = tmp_path / "runs" / "run"

    def told(kind: str) -> list[dict[str, object]]:
        return [row for row in rows(run / "events.jsonl") if row["kind"] == kind]

    with started("train", config) as process:
        for step in (5, 10, 15):
            wait_until(
                lambda to=step: any(row["step"] >= to for row in told("checkpoint")), process
            )
            wait_until(lambda sessions=step // 5: len(told("ready")) >= sessions, process)
            os.kill(read_heartbeats(run)[1].pid, signal.SIGKILL)
            wait_until(lambda times=step // 5: len(told("worker_failed")) >= times, process)
        assert process.wait(240) == 0, process.communicate()[0]
    failures = [str(row["message"]) for row in told("worker_failed")]
    assert [("restart 1 of 1 goes on" in line) for line in failures] == [True, False, True]
    assert "restart, from which on they are counted anew, goes on from step" in failures[1]
    measured = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert measured == list(range(1, STEPS + 1))
