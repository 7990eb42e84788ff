"""What a job on a Ray cluster survives: a cluster that is gone, and a second job of its name."""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import manyfaces, started
from node_runs import (
    EVERY,
    HOLD,
    WAIT_S,
    Watched,
    check_as_undisturbed,
    config_of,
    events,
    is_held,
    last_step,
    report,
    run_twin,
    wait_until,
)
from ray_nodes import ray_cluster

from manyfaces.train.lease import STALE_S

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_twin(tmp_path_factory.mktemp("twin"), dataset_path)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """What starts a cluster that takes jobs, while a `with` block runs."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return lambda: ray_cluster(monkeypatch, num_cpus=2)


def submit(config: Path, address: str) -> str:
    def submitted() -> subprocess.CompletedProcess[str] | None:
        done = manyfaces("submit", config, "--address", address)
        # Ray's own words: its agent is not up yet.
        return None if "try again later" in done.stderr else done

    done = wait_until(submitted)
    assert done.returncode == 0, done.stderr
    return str(re.findall(r"raysubmit_\w+", done.stdout)[0])


def submit_held(config: Path, address: str) -> str:
    """Submit a job that waits in `HOLD` until something has befallen it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYFACES_FAULTS", HOLD)
        return submit(config, address)


def status(job: str, address: str) -> str:
    return manyfaces("jobs", "status", job, "--address", address).stdout


def logs(job: str, address: str) -> str:
    return manyfaces("jobs", "logs", job, "--address", address).stdout


def ended(job: str, address: str) -> str:
    """The state in which the job has ended."""

    def state() -> str:
        word = status(job, address).partition("\n")[0].partition(":")[0]
        return word if word in ("SUCCEEDED", "FAILED", "STOPPED") else ""

    return str(wait_until(state))


def lease(run: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    [path] = run.glob(f".{kind}-????????")
    return path, json.loads(path.read_text())


def processes_of(cluster: Any) -> list[psutil.Process]:
    """All that belong to the cluster: of Ray itself, workers, and drivers of jobs."""
    found: list[psutil.Process] = []
    for node in cluster.list_all_nodes():
        for started_by_ray in node.all_processes.values():
            for known in started_by_ray:
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(known.process.pid)
                    found += [root, *root.children(recursive=True)]
    return found


def test_the_whole_cluster_is_lost_and_the_job_is_submitted_to_another(
    jobs: Callable[[], Any], twin: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, dataset_path)
    run = tmp_path / "runs" / "run"
    with jobs() as (cluster, address):
        job = submit_held(config, address)
        with started("jobs", "logs", job, "--follow", "--address", address) as follower:
            wait_until(lambda: is_held(run))
            fault_at = time.time()
            for process in processes_of(cluster):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            followed = follower.communicate(timeout=WAIT_S)[0]
        furthest = last_step(run)
        assert follower.returncode == 2
        [lost_line] = [line for line in followed.splitlines() if line.startswith("error: ")]
        asked = manyfaces("jobs", "status", job, "--address", address)
        assert asked.returncode == 2
        assert f"{address}: no Ray dashboard answers there" in asked.stderr
    # What another machine knows of a dead one: it cannot ask for its processes.
    for kind in ("lease", "writer"):
        path, holder = lease(run, kind)
        heard = path.stat().st_mtime
        path.write_text(json.dumps(holder | {"kernel": "another", "host": "lost-head"}))
        os.utime(path, (heard, heard))
    with jobs() as (_, address):
        job = submit(config, address)
        state_at_end, told = ended(job, address), logs(job, address)
    assert state_at_end == "SUCCEEDED", told
    resumed = events(run, "start")[-1]
    lost = furthest - resumed["step"]
    [waited] = [line for line in told.splitlines() if "has given no sign of life" in line]
    report("a lost cluster", run, fault_at, lost, lost_line, waited)
    assert "submit the same to another one, and the run goes on from its last check" in lost_line
    assert re.search(
        rf"{run}: process \d+ on lost-head, Ray job raysubmit_\w+, since .* has given no sign of "
        r"life for \d+ s; if none comes, it counts as dead and this command goes on in \d+ s, or "
        r"at once with --force-takeover",
        waited,
    )
    assert f"resuming step-{resumed['step']:08d}" in told
    assert 0 <= lost <= EVERY + 1
    assert resumed["time"] - heard > STALE_S
    check_as_undisturbed(run, twin)


def test_a_second_job_of_a_name_is_refused_until_the_first_is_dead(
    jobs: Callable[[], Any], twin: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, dataset_path)
    run = tmp_path / "runs" / "run"
    with jobs() as (_, address), Watched(run) as seen:
        first = submit_held(config, address)
        wait_until(lambda: is_held(run))
        second = submit(config, address)
        assert ended(second, address) == "FAILED"
        refused = logs(second, address)
        assert status(first, address).startswith("RUNNING")
        driver = psutil.Process(lease(run, "lease")[1]["pid"])
        fault_at = time.time()
        driver.kill()
        assert ended(first, address) == "FAILED"
        third = submit(config, address)
        taken_s = time.time()
        wait_until(lambda: len(events(run, "start")) == 2)
        lost = seen.furthest - events(run, "start")[-1]["step"]
        state_at_end, told = ended(third, address), logs(third, address)
    assert state_at_end == "SUCCEEDED", told
    [line] = [line for line in refused.splitlines() if "error" in line]
    report("a second job of a name", run, fault_at, lost, line)
    report("... from its submission", run, taken_s, lost)
    assert re.search(
        rf"error: {run}: another process writes this run: process {driver.pid} on \S+, Ray job "
        rf"{first}, since .*, heartbeat \d+ s ago; stop it \(kill {driver.pid}\), or give another "
        r"run\.name$",
        line,
    )
    assert 0 <= lost <= EVERY
    check_as_undisturbed(run, twin)
