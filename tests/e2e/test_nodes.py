"""What a run on a Ray cluster survives: nodes that are lost, drained and returned, a rank that
hangs, a cluster that is gone, and two jobs of one name."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import commands
import psutil
import pytest
import torch
from commands import manyfaces, recipe, rows, started
from launcher import run_ranks
from ray_nodes import STORE_BYTES, ray_cluster
from safetensors.torch import load_file

from manyfaces.configs.load import load
from manyfaces.train.checkpoint.state import read_state
from manyfaces.train.lease import STALE_S

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EPOCHS, STEPS, BATCH, IMAGES = 4, 30, 16, 120
WAIT_S = 600
EVERY = 5
"""Steps between two checkpoints."""
LONG = 4000
"""Epochs of a run that is stopped in the end."""


wait_until = partial(commands.wait_until, timeout_s=WAIT_S)


def measured(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]


def last_step(run: Path) -> int:
    return int(max((row["step"] for row in measured(run)), default=0))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows(run / "events.jsonl") if row["kind"] == kind]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint: weights, optimiser, class rows and their momentum."""
    return {
        f"{file.relative_to(checkpoint)}:{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


class Watched:
    """The furthest step that a run has measured, and when: a resume takes such rows back."""

    def __init__(self, run: Path) -> None:
        self.run, self.furthest = run, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            with contextlib.suppress(ValueError):  # a line that is being written
                self.furthest = max(self.furthest, last_step(self.run))


def check_record(run: Path, end: int) -> None:
    """Each step was measured once, and its samples follow those of the step before: each sample of
    an epoch was seen once."""
    assert [row["step"] for row in measured(run)] == list(range(1, end + 1))
    for row in measured(run):
        assert row["train/epoch"] == pytest.approx(row["step"] * BATCH / IMAGES)
    for checkpoint in (run / "checkpoints").glob("step-????????"):
        known = read_state(checkpoint)
        assert known["position"] == known["step"] * BATCH


def check_as_undisturbed(run: Path, twin: Path) -> None:
    """The run has ended bit for bit where the undisturbed one has."""
    check_record(run, STEPS)
    name = f"checkpoints/step-{STEPS:08d}"
    whole, ours = state(twin / name), state(run / name)
    assert whole.keys() == ours.keys()
    assert all(torch.equal(whole[key], ours[key]) for key in whole)
    losses = [[row["train/loss"] for row in measured(each)] for each in (run, twin)]
    assert losses[0] == losses[1]


def report(row: str, run: Path, fault_at: float, lost: int, *lines: str) -> None:
    """Print what the row of the fault matrix has shown."""
    begun = events(run, "start")[-1]["time"]
    on = next(row["time"] for row in measured(run) if row["time"] > begun)
    told = "; ".join(lines)
    print(f"ROW {row} | {told} | lost {lost} steps | {on - fault_at:.1f} s")  # noqa: T201


def config_of(folder: Path, dataset_path: Path, **sections: Any) -> Path:
    sections = {
        "train": {"epochs": EPOCHS},
        "checkpoint": {"every_steps": EVERY, "keep": 20},
    } | sections
    return recipe(folder, dataset_path, **sections)


def run_undisturbed(config: str) -> None:
    """The worker function itself."""
    from manyfaces.train.session import work

    warnings.simplefilter("default")  # DeepSpeed and what it imports warn of torch and themselves
    work({"name": "run", "config": load(config, []).model_dump(mode="json")})


@pytest.fixture(scope="module")
def twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers, without Ray, that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("twin")
    run_ranks(2, run_undisturbed, str(config_of(folder, dataset_path)), timeout_s=WAIT_S)
    check_record(folder / "runs" / "run", STEPS)
    return folder / "runs" / "run"


Add = Callable[[], Any]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Add]]:
    """A cluster of a head with one core, and what adds a node of one to it."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes, lambda: nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    finally:
        nodes.shutdown()


def drain(nodes: Any, node: Any, seconds: int) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--address", nodes.address, "--node-id", node.node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def test_a_lost_node_and_fewer_workers(
    nodes: tuple[Any, Add], twin: Path, dataset_path: Path, tmp_path: Path
) -> None:
    cluster, add = nodes
    node = add()
    workers = {"workers": {"min": 1, "max": 2}}
    config = config_of(tmp_path, dataset_path, cluster=workers)
    run = tmp_path / "runs" / "run"
    with started("train", config, "--address", cluster.address) as process, Watched(run) as seen:
        wait_until(lambda: last_step(run) >= 2 * EVERY + 2, process)
        fault_at = time.time()
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: len(events(run, "start")) == 2, process)
        lost = seen.furthest - events(run, "start")[-1]["step"]
        text = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode == 0, text
    [told] = events(run, "worker_failed")
    resumed = events(run, "start")[-1]
    report("lost node, elastic", run, fault_at, lost, told["message"])
    # Ray learns of the node later than of its processes.
    assert re.search(
        r"^rank \d on \S+ (died: its (node was lost|process was killed)|is gone)", told["message"]
    )
    assert f"restart 1 of 3 goes on from step {resumed['step']}: " in told["message"]
    assert told["message"] in text
    assert resumed["world_size"] == 1
    assert 0 <= lost <= EVERY + 1
    check_record(run, STEPS)
    until = resumed["step"]
    before = [[row["train/loss"] for row in measured(each)[:until]] for each in (run, twin)]
    assert before[0] == before[1]


def test_a_lost_node_and_another_that_joins_later(
    nodes: tuple[Any, Add], twin: Path, dataset_path: Path, tmp_path: Path
) -> None:
    cluster, add = nodes
    node = add()
    run = tmp_path / "runs" / "run"
    config = config_of(tmp_path, dataset_path)
    with started("train", config, "--address", cluster.address) as process, Watched(run) as seen:
        wait_until(lambda: last_step(run) >= 2 * EVERY + 2, process)
        fault_at = time.time()
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: events(run, "worker_failed"), process)
        time.sleep(30)  # the run waits, and says for what
        assert len(events(run, "start")) == 1
        joined_at = time.time()
        add()
        wait_until(lambda: len(events(run, "start")) == 2, process)
        lost = seen.furthest - events(run, "start")[-1]["step"]
        text = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode == 0, text
    waiting = re.findall(r"waiting for the workers since .*", text)
    [told] = events(run, "worker_failed")
    report("lost node, fixed number", run, fault_at, lost, told["message"], *waiting)
    report("... from the node that joined", run, joined_at, lost)
    assert " goes on from step " in told["message"]
    lacks = ": 2 workers are wanted (CPU cores each: 1), the cluster has 1 cores, 0 GPUs"
    assert any(line.endswith(lacks) for line in waiting)
    assert 0 <= lost <= EVERY + 1
    check_as_undisturbed(run, twin)


@pytest.mark.parametrize("workers", [2, {"min": 2, "max": 3}])
def test_no_wait_for_nodes_is_without_end(
    nodes: tuple[Any, Add], workers: Any, dataset_path: Path, tmp_path: Path
) -> None:
    cluster, add = nodes
    node = add()
    config = config_of(
        tmp_path,
        dataset_path,
        train={"epochs": LONG},
        cluster={"workers": workers, "schedule_timeout_s": 25},
    )
    run = tmp_path / "runs" / "run"
    with started("train", config, "--address", cluster.address) as process:
        wait_until(lambda: last_step(run) >= 2 * EVERY, process)
        fault_at = time.time()
        cluster.remove_node(node, allow_graceful=False)
        text = process.communicate(timeout=WAIT_S)[0]
    print(f"ROW no place, {workers} | {text.splitlines()[-1]} | {time.time() - fault_at:.1f} s")  # noqa: T201
    assert process.returncode == 2, text
    wanted = "2 to 3" if isinstance(workers, dict) else "2"
    assert re.search(
        r"error: Ray could not start the workers: no place for them within \d\d s "
        rf"\(cluster\.schedule_timeout_s=25\): {wanted} workers are wanted \(CPU cores each: 1\), "
        r"the cluster has 1 cores, 0 GPUs",
        text.splitlines()[-1],
    )
    assert "Traceback" not in text


def test_drained_nodes_cost_no_step_and_nor_does_one_that_returns(
    nodes: tuple[Any, Add], dataset_path: Path, tmp_path: Path
) -> None:
    cluster, add = nodes
    first, second = add(), add()
    config = config_of(
        tmp_path,
        dataset_path,
        train={"epochs": LONG},
        checkpoint={"every_steps": 100_000, "keep": 20},
        cluster={"workers": {"min": 1, "max": 3}, "grace_s": 15},
    )
    run = tmp_path / "runs" / "run"
    with started("train", config, "--address", cluster.address) as process, Watched(run) as seen:
        wait_until(lambda: last_step(run) >= EVERY, process)
        assert events(run, "start")[0]["world_size"] == 3
        fault_at = time.time()
        drain(cluster, first, 40)
        wait_until(lambda: len(events(run, "saving")) == 1, process)
        drain(cluster, second, 40)
        wait_until(lambda: len(events(run, "saving")) == 2, process)
        wait_until(lambda: len(events(run, "start")) == 2, process)
        shrunk, lost = events(run, "start")[-1], seen.furthest - events(run, "start")[-1]["step"]
        told = [row["message"] for row in events(run, "saving")]
        wait_until(lambda: last_step(run) > shrunk["step"], process)
        report("two drained nodes", run, fault_at, lost, *told)
        assert lost == 0
        assert shrunk["world_size"] == 1
        assert shrunk["step"] > EVERY

        fault_at = time.time()
        add()
        wait_until(lambda: len(events(run, "start")) == 3, process)
        grown, lost = events(run, "start")[-1], seen.furthest - events(run, "start")[-1]["step"]
        wait_until(lambda: last_step(run) > grown["step"], process)
        report("a node returns", run, fault_at, lost, events(run, "saving")[-1]["message"])
        saved_at = events(run, "saving")[-1]["time"]
        report("... from the save", run, saved_at, lost)
        assert lost == 0
        assert grown["world_size"] == 2
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode == 75, text
    ranks = [set(re.findall(r"\d", line.partition(" in ")[0])) for line in told]
    assert all(" drains the node of rank " in line for line in told)
    assert len(ranks[0]) == 1
    assert ranks[0] < ranks[1]
    assert "the cluster has a place for 2 workers instead of 1: what was trained is saved" in text
    assert not events(run, "worker_failed")
    check_record(run, last_step(run))


def test_a_rank_that_hangs_is_named_and_replaced(
    twin: Path, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYFACES_FAULTS", "stop@rank=1,step=13")
    short = {
        "cluster": {"step_timeout_s": 40},
        "data": {"store_patience_s": 20},
        "checkpoint": {"every_steps": EVERY, "keep": 20},
    }
    config = config_of(tmp_path, dataset_path, **short)
    run = tmp_path / "runs" / "run"
    with started("train", config) as process, Watched(run) as seen:
        wait_until(lambda: events(run, "fault"), process)
        hung = int(json.loads((run / ".ranks" / "1.json").read_text())["pid"])
        wait_until(lambda: len(events(run, "start")) == 2, process)
        lost = seen.furthest - events(run, "start")[-1]["step"]
        text = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode == 0, text
    [fault], [told] = events(run, "fault"), events(run, "hung")
    [failed] = events(run, "worker_failed")
    report("a hung rank", run, fault["time"], lost, told["message"], failed["message"])
    assert re.search(
        r"^rank 1 on \S+ has not arrived and gives no sign of life: its last was in '[^']+"
        r"', after step \d+; rank 0 has been in 'step 13' for more than 40 s ",
        told["message"],
    )
    assert failed["rank"] == 1
    assert re.search(r"^rank 1 on \S+ has hung: it was last heard of in ", failed["message"])
    assert told["message"] in text
    assert 0 <= lost <= EVERY
    assert not psutil.pid_exists(hung)
    check_as_undisturbed(run, twin)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """What starts a cluster that takes jobs, while a `with` block runs."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    return lambda: ray_cluster(monkeypatch, num_cpus=2)


def submit(config: Path, address: str) -> str:
    submitted = manyfaces("submit", config, "--address", address)
    while "try again later" in submitted.stderr:  # Ray's own words: its agent is not up yet
        submitted = manyfaces("submit", config, "--address", address)
    assert submitted.returncode == 0, submitted.stderr
    return re.findall(r"raysubmit_\w+", submitted.stdout)[0]


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


def test_the_whole_cluster_is_lost_and_the_job_is_submitted_to_another(
    jobs: Callable[[], Any], twin: Path, dataset_path: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, dataset_path)
    run = tmp_path / "runs" / "run"
    with jobs() as (_, address):
        job = submit(config, address)
        with started("jobs", "logs", job, "--follow", "--address", address) as follower:
            wait_until(lambda: last_step(run) >= 2 * EVERY + 2)
            fault_at = time.time()
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.pid != follower.pid:
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
        # It waits at step 13 until it is killed.
        os.environ["MANYFACES_FAULTS"] = "sleep@rank=1,step=13,seconds=900"
        try:
            first = submit(config, address)
        finally:
            del os.environ["MANYFACES_FAULTS"]
        wait_until(lambda: last_step(run) >= 12)
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
