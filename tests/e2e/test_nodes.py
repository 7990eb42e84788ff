"""What a run on a Ray cluster survives: nodes that are lost, drained and returned, and a rank that
hangs."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import started
from node_runs import (
    EVERY,
    HOLD,
    STEPS,
    WAIT_S,
    Watched,
    check_as_undisturbed,
    check_record,
    config_of,
    events,
    is_held,
    last_step,
    measured,
    report,
    run_twin,
    wait_until,
)
from ray_nodes import STORE_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LONG = 4000
"""Epochs of a run that is stopped in the end."""
LACKS = ": 2 workers are wanted (CPU cores each: 1), the cluster has 1 cores, 0 GPUs"
Add = Callable[[], Any]


@pytest.fixture(scope="module")
def twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_twin(tmp_path_factory.mktemp("twin"), dataset_path)


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


def read_lines(process: subprocess.Popen[str], lines: list[str], waits: threading.Event) -> None:
    """Append what the command prints until it ends, and tell when it waits for a lost node's
    worker; on a slow machine it has waited for the first ones too."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "waiting for the workers since" in line and line.rstrip().endswith(LACKS):
            waits.set()


def test_a_lost_node_and_fewer_workers(
    nodes: tuple[Any, Add],
    twin: Path,
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANYFACES_FAULTS", HOLD)
    cluster, add = nodes
    node = add()
    workers = {"workers": {"min": 1, "max": 2}}
    config = config_of(tmp_path, dataset_path, cluster=workers)
    run = tmp_path / "runs" / "run"
    with started("train", config, "--address", cluster.address) as process, Watched(run) as seen:
        wait_until(lambda: is_held(run), process)
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
    nodes: tuple[Any, Add],
    twin: Path,
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MANYFACES_FAULTS", HOLD)
    cluster, add = nodes
    node = add()
    run = tmp_path / "runs" / "run"
    config = config_of(tmp_path, dataset_path)
    with started("train", config, "--address", cluster.address) as process, Watched(run) as seen:
        wait_until(lambda: is_held(run), process)
        fault_at = time.time()
        cluster.remove_node(node, allow_graceful=False)
        lines: list[str] = []
        waits = threading.Event()
        reader = threading.Thread(target=read_lines, args=(process, lines, waits))
        reader.start()
        wait_until(waits.is_set, process)
        assert len(events(run, "start")) == 1
        joined_at = time.time()
        add()
        wait_until(lambda: len(events(run, "start")) == 2, process)
        lost = seen.furthest - events(run, "start")[-1]["step"]
        process.wait(WAIT_S)
        reader.join(WAIT_S)
    text = "".join(lines)
    assert process.returncode == 0, text
    waiting = re.findall(r"waiting for the workers since .*", text)
    [told] = events(run, "worker_failed")
    report("lost node, fixed number", run, fault_at, lost, told["message"], *waiting)
    report("... from the node that joined", run, joined_at, lost)
    assert " goes on from step " in told["message"]
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
