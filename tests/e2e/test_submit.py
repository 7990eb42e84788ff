"""Submit to a Ray cluster of three nodes, kill a worker, remove a node, stop the job: it finishes,
and every sample was seen in order; and what is told of it meanwhile."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import manyfaces, ray_workers, recipe, rows
from node_runs import last_step, starts, wait_until
from ray_nodes import STORE_BYTES, ray_cluster
from trained_samples import check_in_order

pytestmark = pytest.mark.slow
BATCH, STEPS = 16, 180


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
        train={"batch_size": 16, "epochs": 24},
    )
    run = tmp_path / "runs" / "run"
    submitted = manyfaces("submit", config, "run.name=run", "--address", address)
    assert submitted.returncode == 0, submitted.stderr
    assert re.search(r"^checked    3 nodes: Python 3.*places for 3 workers", submitted.stdout, re.M)
    job = re.findall(r"raysubmit_\w+", submitted.stdout)[0]
    assert submitted.stdout.splitlines()[-2:] == [
        f"follow     manyfaces jobs logs {job} --follow --address {address}",
        f"look       manyfaces jobs status {job} --address {address}",
    ]

    def steps(count: int) -> bool:
        return sum("train/loss" in row for row in rows(run / "metrics.jsonl")) >= count

    try:
        wait_until(lambda: steps(8))
        wait_until(lambda: len(ray_workers()) == 3)
        before = told(job, address)
        assert before["state"] == "training"
        assert (before["restarts"], before["workers"]) == (0, 3)
        assert (before["num_steps"], before["folder"]) == (STEPS, str(run))
        assert 0 < before["step"] <= STEPS
        assert min(before["loss"], before["images_per_s"], before["seconds_left"]) > 0
        ray_workers()[0].kill()
        wait_until(lambda: len(starts(run)) >= 2)
        wait_until(lambda: steps(starts(run)[1]["step"] + 8))
        nodes.remove_node(extra[1], allow_graceful=False)
        wait_until(lambda: len(starts(run)) >= 3)
        assert manyfaces("jobs", "status", job, "--address", address).stdout.startswith("RUNNING")
        after = wait_until(lambda: has_restarted(job, address, times=2))
        assert after["failures"] >= 2
        assert after["workers"] < 3
        assert after["checkpoint_step"] >= starts(run)[-1]["step"]
        wait_until(
            lambda: "SUCCEEDED" in manyfaces("jobs", "status", job, "--address", address).stdout
        )
        shown = manyfaces("jobs", "status", job, "--address", address).stdout
        assert re.search(r"step +180 of 180$", shown, re.M)
        assert re.search(r"checkpoint +step 180, \d+ (s|min) ago$", shown, re.M)
        [listed] = json.loads(manyfaces("jobs", "list", "--json", "--address", address).stdout)
        assert (listed["id"], listed["status"]["state"]) == (job, "finished")
    finally:
        logs = manyfaces("jobs", "logs", job, "--address", address).stdout
        print(logs)  # noqa: T201 - shown when the test fails
        with contextlib.suppress(Exception):
            manyfaces("jobs", "stop", job, "--address", address)
    assert starts(run)[0]["world_size"] == 3
    assert starts(run)[-1]["world_size"] < 3
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, STEPS + 1)
    )
    assert "finished at step 180" in logs


def test_a_fixed_number_of_workers_a_lost_node_and_a_job_that_is_stopped(
    cluster, dataset_path: Path, tmp_path: Path
) -> None:
    nodes, extra, address = cluster
    config = recipe(
        tmp_path, dataset_path, cluster={"workers": 2}, train={"batch_size": 16, "epochs": 24}
    )
    run = tmp_path / "runs" / "run"

    def submit() -> str:
        submitted = manyfaces("submit", config, "run.name=run", "--address", address)
        assert submitted.returncode == 0, submitted.stderr
        return re.findall(r"raysubmit_\w+", submitted.stdout)[0]

    def status(job: str) -> str:
        return manyfaces("jobs", "status", job, "--address", address).stdout

    job = submit()
    try:
        wait_until(lambda: last_step(run) >= 8)
        ray_workers()[0].kill()
        wait_until(lambda: len(starts(run)) >= 2)
        before = starts(run)[-1]["step"]
        wait_until(lambda: last_step(run) >= before + 6)
        nodes.remove_node(extra[1], allow_graceful=False)
        wait_until(lambda: last_step(run) >= before + 20)
        assert status(job).startswith("RUNNING")
        stopped = manyfaces("jobs", "stop", job, "--address", address)
        at = last_step(run)
        assert stopped.stdout.splitlines() == [
            f"{job}: stopping; what was trained is saved within 35 s, about cluster.grace_s",
            f"{job}: STOPPED; checkpoint of step {at}",
            "the same command of `manyfaces submit` goes on from it",
        ]
        assert (run / "checkpoints" / f"step-{at:08d}" / "COMMIT.json").exists()
        assert "STOPPED" in status(job)
        wait_until(lambda: not ray_workers())
        assert last_step(run) == at < STEPS
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
    assert starts(run)[-1]["step"] == at
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, STEPS + 1)
    )
    listed = manyfaces("jobs", "list", "--address", address).stdout
    assert listed.count("raysubmit_") == 2


def test_two_workers_become_four_and_one_with_an_unbroken_sample_log(
    cluster, dataset_path: Path, tmp_path: Path
) -> None:
    nodes, extra, address = cluster
    nodes.remove_node(extra.pop(), allow_graceful=False)
    config = recipe(
        tmp_path,
        dataset_path,
        cluster={"workers": {"min": 1, "max": 4}},
        train={"batch_size": BATCH, "epochs": 4000},
        tracking={"log_every_steps": 1, "log_samples": True},
    )
    run = tmp_path / "runs" / "run"

    def world_is(size: int) -> bool:
        """Whether so many workers have trained, and saved what they did: where they are lost, what
        was not saved is done again by as many as there are then."""
        known = starts(run)
        if not known or known[-1]["world_size"] != size:
            return False
        saved = [path.parent.name for path in (run / "checkpoints").glob("step-????????/COMMIT.*")]
        return max((int(name[5:]) for name in saved), default=0) > known[-1]["step"]

    def submit() -> str:
        submitted = manyfaces("submit", config, "--address", address)
        assert submitted.returncode == 0, submitted.stderr
        return re.findall(r"raysubmit_\w+", submitted.stdout)[0]

    with stopped_in_the_end(address):
        job = submit()
        wait_until(lambda: world_is(2))
        extra += [nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
        wait_until(lambda: world_is(4))
        for node in extra:
            nodes.remove_node(node, allow_graceful=False)
        wait_until(lambda: world_is(1))
        assert "STOPPED" in manyfaces("jobs", "stop", job, "--address", address).stdout
        at = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-????????"))
        job = submit()
        wait_until(lambda: starts(run)[-1]["step"] == at and world_is(1))
        assert "STOPPED" in manyfaces("jobs", "stop", job, "--address", address).stdout
    samples = check_in_order(config, run)
    assert {2, 4, 1} <= {len(parts) for parts in samples.values()}


def test_what_a_cluster_lacks_is_told_before_anything_starts(
    cluster, dataset_path: Path, tmp_path: Path
) -> None:
    _, _, address = cluster
    config = recipe(tmp_path, dataset_path, cluster={"workers": 4})
    (tmp_path / "file").write_text("")
    words = [f"data.path={tmp_path}/nothing", f"run.dir={tmp_path}/runs"]
    refused = manyfaces("submit", config, *words, "--address", address)
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, refused.stderr
    assert re.search(rf"error: node \S+ \(\S+\): dataset {tmp_path}/nothing: no such f", lines[0])
    assert "cluster.workers: 4 workers of 1 CPU cores are wanted, the cluster has " in lines[1]
    refused = manyfaces("submit", config, f"run.dir={tmp_path}/file/runs", "--address", address)
    assert refused.returncode == 2
    assert f"run.dir {tmp_path}/file/runs: it cannot be written (Not a directory)" in refused.stderr
    assert json.loads(manyfaces("jobs", "list", "--json", "--address", address).stdout) == []
    assert not (tmp_path / "runs" / "run").exists()


def told(job: str, address: str) -> dict[str, Any]:
    """What the driver says of the run, once it does."""

    def status() -> dict[str, Any] | None:
        shown = manyfaces("jobs", "status", job, "--json", "--address", address).stdout
        known: dict[str, Any] = json.loads(shown)["status"] or {}
        return known if known.get("step") else None

    found: dict[str, Any] = wait_until(status)
    return found


def has_restarted(job: str, address: str, times: int) -> dict[str, Any] | None:
    known = told(job, address)
    return known if known["restarts"] >= times else None


@contextlib.contextmanager
def stopped_in_the_end(address: str) -> Iterator[None]:
    """No job is left running, and its log is shown where the test fails."""
    try:
        yield
    finally:
        shown = manyfaces("jobs", "list", "--json", "--address", address).stdout
        for job in json.loads(shown or "[]"):
            print(manyfaces("jobs", "logs", job["id"], "--address", address).stdout)  # noqa: T201
            if job["state"] not in ("STOPPED", "SUCCEEDED", "FAILED"):
                manyfaces("jobs", "stop", job["id"], "--no-wait", "--address", address)
