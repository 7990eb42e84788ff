"""Submit to a Ray cluster of three nodes, kill a worker, remove a node, stop the job: it finishes,
and every sample was seen in order."""

import contextlib
import re
from pathlib import Path

import pytest
from commands import manyfaces, ray_workers, recipe, rows, wait_until
from ray_nodes import STORE_BYTES, ray_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    with ray_cluster(monkeypatch, num_cpus=1) as (nodes, address):
        extra = [nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
        yield nodes, extra, address


def test_a_job_survives_a_killed_worker_and_a_lost_node(
    cluster, dataset_path: Path, tmp_path: Path
) -> None:
    nodes, extra, address = cluster
    config = recipe(
        tmp_path,
        dataset_path,
        cluster={"workers": {"min": 1, "max": 3}},
        train={"batch_size": 16, "epochs": 16},
    )
    run = tmp_path / "runs" / "run"
    submitted = manyfaces("submit", config, "run.name=run", "--address", address)
    assert submitted.returncode == 0, submitted.stderr
    job = re.findall(r"raysubmit_\w+", submitted.stdout)[0]

    def steps(count: int) -> bool:
        return sum("train/loss" in row for row in rows(run / "metrics.jsonl")) >= count

    try:
        wait_until(lambda: steps(8))
        wait_until(lambda: len(ray_workers()) == 3)
        ray_workers()[0].kill()
        wait_until(lambda: len(starts(run)) >= 2)
        wait_until(lambda: steps(starts(run)[1]["step"] + 8))
        nodes.remove_node(extra[1], allow_graceful=False)
        wait_until(lambda: len(starts(run)) >= 3)
        assert manyfaces("jobs", "status", job, "--address", address).stdout.startswith("RUNNING")
        wait_until(
            lambda: "SUCCEEDED" in manyfaces("jobs", "status", job, "--address", address).stdout
        )
    finally:
        logs = manyfaces("jobs", "logs", job, "--address", address).stdout
        print(logs)  # noqa: T201 - shown when the test fails
        with contextlib.suppress(Exception):
            manyfaces("jobs", "stop", job, "--address", address)
    assert starts(run)[0]["world_size"] == 3
    assert starts(run)[-1]["world_size"] < 3
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, 121)
    )
    assert "finished at step 120" in logs


def test_a_fixed_number_of_workers_a_lost_node_and_a_job_that_is_stopped(
    cluster, dataset_path: Path, tmp_path: Path
) -> None:
    nodes, extra, address = cluster
    config = recipe(
        tmp_path, dataset_path, cluster={"workers": 2}, train={"batch_size": 16, "epochs": 16}
    )
    run = tmp_path / "runs" / "run"

    def submit() -> str:
        submitted = manyfaces("submit", config, "run.name=run", "--address", address)
        assert submitted.returncode == 0, submitted.stderr
        return re.findall(r"raysubmit_\w+", submitted.stdout)[0]

    def status(job: str) -> str:
        return manyfaces("jobs", "status", job, "--address", address).stdout

    def last_step() -> int:
        return max(
            (row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row), default=0
        )

    job = submit()
    try:
        wait_until(lambda: last_step() >= 8)
        ray_workers()[0].kill()
        wait_until(lambda: len(starts(run)) >= 2)
        before = starts(run)[-1]["step"]
        wait_until(lambda: last_step() >= before + 6)
        nodes.remove_node(extra[1], allow_graceful=False)
        wait_until(lambda: last_step() >= before + 20)
        assert status(job).startswith("RUNNING")
        stopped = manyfaces("jobs", "stop", job, "--address", address)
        assert "stopping" in stopped.stdout
        wait_until(lambda: "STOPPED" in status(job))
        wait_until(lambda: not ray_workers())
        assert last_step() < 120
        assert "was not running" in manyfaces("jobs", "stop", job, "--address", address).stdout
        sessions = len(starts(run))
        job = submit()
        wait_until(lambda: "SUCCEEDED" in status(job))
    finally:
        logs = manyfaces("jobs", "logs", job, "--address", address).stdout
        print(logs)  # noqa: T201 - shown when the test fails
        with contextlib.suppress(Exception):
            manyfaces("jobs", "stop", job, "--address", address)
    assert {start["world_size"] for start in starts(run)} == {2}
    assert len(starts(run)) == sessions + 1
    assert starts(run)[-1]["step"] > before
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, 121)
    )
    listed = manyfaces("jobs", "list", "--address", address).stdout
    assert listed.count("raysubmit_") == 2


def starts(run: Path) -> list[dict]:
    return [row for row in rows(run / "events.jsonl") if row["kind"] == "start"]
