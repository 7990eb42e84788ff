"""Under Ray a stop reaches the workers from the launching process, from one worker and from a node
that is drained; a killed worker is told, and is no stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TIMEOUT_S, recipe, rows, started, wait_until

pytestmark = pytest.mark.slow


def steps(run: Path) -> list[int]:
    return [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]


def kinds(run: Path) -> list[str]:
    return [row["kind"] for row in rows(run / "events.jsonl")]


def messages(run: Path, kind: str) -> list[str]:
    return [row["message"] for row in rows(run / "events.jsonl") if row["kind"] == kind]


def pid(run: Path, rank: int) -> int:
    return int(json.loads((run / ".ranks" / f"{rank}.json").read_text())["pid"])


def mlflow_status(run: Path) -> str:
    from mlflow import MlflowClient

    known = json.loads((run / "mlflow.json").read_text())
    return str(MlflowClient(known["uri"]).get_run(known["run_id"]).info.status)


def check_stopped(run: Path, process: subprocess.Popen[str], text: str, by: str) -> None:
    """All that was trained is in a checkpoint, and nothing was started again."""
    name = f"step-{steps(run)[-1]:08d}"
    assert process.returncode == 75, text
    assert f"stopped by {by}" in text
    assert f"the same command goes on from {run}/checkpoints/{name}" in text
    assert (run / "checkpoints" / name / "COMMIT.json").exists()
    assert kinds(run)[-2:] == ["checkpoint", "interrupted"]
    assert "Traceback" not in text
    assert mlflow_status(run) == "KILLED"


@pytest.mark.filterwarnings("ignore")  # MLflow's store warns of its own database layer
def test_a_killed_worker_is_told_and_sigterm_saves(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(
        tmp_path, dataset_path, train={"epochs": 60}, checkpoint={"every_steps": 20, "keep": 20}
    )
    run = tmp_path / "runs" / "run"
    with started("train", config) as process:
        wait_until(lambda: steps(run)[-1:] >= [25], process)
        os.kill(pid(run, 1), signal.SIGKILL)
        wait_until(lambda: kinds(run).count("start") == 2, process)
        (told,) = messages(run, "worker_failed")
        assert told.startswith("rank 1 on ")
        assert "died: its process was killed" in told
        assert "restart 1 of 3 goes on from step 20: " in told
        wait_until(lambda: steps(run)[-1] >= 30, process)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=TIMEOUT_S)[0]
    check_stopped(run, process, text, "SIGTERM")
    assert kinds(run).count("worker_failed") == 1

    # One worker alone: the others learn of it in the next step.
    with started("train", config) as process:
        wait_until(lambda: kinds(run).count("start") == 3, process)
        at = steps(run)[-1]
        wait_until(lambda: steps(run)[-1] > at, process)
        os.kill(pid(run, 1), signal.SIGUSR1)
        text = process.communicate(timeout=TIMEOUT_S)[0]
    check_stopped(run, process, text, "SIGUSR1")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes, nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    finally:
        nodes.shutdown()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [2, {"min": 1, "max": 2}])
def test_a_drained_node(nodes: Any, workers: Any, dataset_path: Path, tmp_path: Path) -> None:
    cluster, node = nodes
    config = recipe(
        tmp_path,
        dataset_path,
        train={"epochs": 120},
        checkpoint={"every_steps": 1000, "keep": 20},
        cluster={"workers": workers},
    )
    run = tmp_path / "runs" / "run"
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    drain += ["--address", cluster.address, "--node-id", node.node_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    with started("train", config, "--address", cluster.address) as process:
        wait_until(lambda: steps(run)[-1:] >= [5], process)
        subprocess.run([*drain, "--deadline-remaining-seconds", "30"], check=True, timeout=60)
        if workers == 2:
            text = process.communicate(timeout=TIMEOUT_S)[0]
            check_stopped(run, process, text, "Ray's notice that it drains the node of rank")
            return
        wait_until(lambda: "checkpoint" in kinds(run), process)
        wait_until(lambda: kinds(run).count("start") == 2, process)
    assert "interrupted" not in kinds(run)
    assert "and the run goes on" in messages(run, "saving")[0]
    resumed = [row for row in rows(run / "events.jsonl") if row["kind"] == "start"][-1]
    assert resumed["world_size"] == 1
    assert resumed["step"] > 5
