"""Workers that Ray loses more often than `cluster.max_failures`, each time behind a new
checkpoint."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import TIMEOUT_S, recipe, rows, started, wait_until

from manyfaces.train.heartbeat import read_heartbeats

pytestmark = pytest.mark.slow
STEPS, EVERY = 90, 5


@pytest.mark.filterwarnings("ignore")  # MLflow's store warns of its own database layer
def test_the_run_goes_on_for_as_long_as_it_saves(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        dataset_path,
        checkpoint={"every_steps": EVERY},
        train={"epochs": 12},
        cluster={"workers": 2, "max_failures": 1},
    )
    run = tmp_path / "runs" / "run"

    def told(kind: str) -> list[dict[str, Any]]:
        return [row for row in rows(run / "events.jsonl") if row["kind"] == kind]

    def has_saved(sessions: int) -> bool:
        """Whether the session of this number has begun, and written a checkpoint of its own."""
        ready = told("ready")
        if len(ready) < sessions:
            return False
        return any(row["step"] >= ready[-1]["step"] + EVERY for row in told("checkpoint"))

    with started("train", config) as process:
        for number in (1, 2, 3):
            wait_until(partial(has_saved, number), process)
            os.kill(read_heartbeats(run)[1].pid, signal.SIGKILL)
            wait_until(lambda times=number: len(told("worker_failed")) >= times, process)
        text = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == 0, text
    failures = [str(row["message"]) for row in told("worker_failed")]
    assert [("restart 1 of 1 goes on" in line) for line in failures] == [True, False, True]
    assert "restart, from which on they are counted anew, goes on from step" in failures[1]
    measured = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert measured == list(range(1, STEPS + 1))
    attempts = attempts_of(run)
    assert [each.info.status for each in attempts] == ["FAILED"] * 3 + ["FINISHED"]
    assert [each.data.tags["manyfaces.end"] for each in attempts[:3]] == failures
    steps = [int(each.data.tags["manyfaces.from_step"]) for each in attempts]
    assert steps == [row["step"] for row in told("start")]


def attempts_of(run: Path) -> list[Any]:
    """The runs that MLflow has below the run, the first one first."""
    from mlflow import MlflowClient

    known = json.loads((run / "mlflow.json").read_text())
    below = f"tags.`mlflow.parentRunId` = '{known['run_id']}'"
    client, order = MlflowClient(known["uri"]), ["attributes.start_time ASC"]
    return list(client.search_runs([known["experiment_id"]], below, order_by=order))
