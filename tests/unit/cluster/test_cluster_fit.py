"""What a cluster lacks for a job is one line each, from what its nodes have said."""

import importlib.metadata
import platform
from typing import Any

import pytest

from manyfaces.cluster.fit import fit, requirements
from manyfaces.cluster.probe import versions
from manyfaces.configs.schema import Cluster

HERE = versions([each.name for each in requirements()])


def node(name: str, cpus: int = 2, **changed: Any) -> dict[str, Any]:
    has = {"CPU": float(cpus)}
    known = {"id": name, "name": name, "has": has, "free": has, "faults": []}
    return {**known, "python": platform.python_version(), "versions": HERE, **changed}


def found(*nodes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    known = {"faults": [], "driver": "head", "groups": [], "autoscales": False}
    return {**known, "nodes": list(nodes), **changed}


def test_a_cluster_that_fits() -> None:
    result = fit(found(node("a"), node("b")), Cluster(workers=4))
    assert (result.faults, result.notes) == ([], [])
    assert result.summary == (
        f"2 nodes: Python {platform.python_version()}, ray {importlib.metadata.version('ray')}, "
        f"torch {importlib.metadata.version('torch')}; places for 4 workers of 1 CPU cores"
    )


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            found(node("a"), node("b", faults=["dataset /x: no such folder"])),
            "node b: dataset /x: no such folder",
        ),
        (
            found(node("a"), {**node("b"), "fault": "no answer within 30 s"}),
            "node b: no answer within 30 s",
        ),
        (found(node("a"), faults=["run.dir /y: no"]), "the driver's node, head: run.dir /y: no"),
        (
            found(node("a"), node("b", versions={**HERE, "torch": "2.12.1+cu130"})),
            "the nodes differ: torch is TORCH on a and 2.12.1+cu130 on b; install the same on all",
        ),
        (
            found(node("a", versions={**HERE, "deepspeed": None})),
            "node a: not installed: deepspeed==0.19.*",
        ),
        (
            found(node("a", versions={**HERE, "mlflow": "2.1"})),
            "node a: mlflow 2.1; manyfaces needs <4,>=3.17.2",
        ),
        (
            found(node("a", python="3.10.2")),
            "node a: Python 3.10.2; manyfaces needs <3.13,>=3.11",
        ),
    ],
)
def test_what_is_wrong_names_the_node(answer: dict[str, Any], line: str) -> None:
    line = line.replace("TORCH", str(HERE["torch"]))
    assert line in fit(answer, Cluster(workers=1)).faults


def test_many_nodes_with_one_fault_are_one_line() -> None:
    nodes = [node(name, faults=["dataset /x: no such folder"]) for name in "abcde"]
    assert fit(found(*nodes), Cluster(workers=1)).faults == [
        "nodes a, b, c and 2 more: dataset /x: no such folder"
    ]


def test_a_node_that_has_just_died_is_no_fault() -> None:
    lost = {**node("b"), "lost": True}
    del lost["versions"]
    result = fit(found(node("a"), lost), Cluster(workers=2))
    assert result.notes == ["node b: lost by the cluster just now, and not counted"]
    assert result.faults == []
    [line] = fit(found(node("a"), lost), Cluster(workers=3)).faults
    assert "the cluster has places for 2; lower" in line


def test_builds_of_one_torch_go_together_and_another_release_than_here_is_noted() -> None:
    builds = [node(name, versions={**HERE, "torch": f"2.99.0+{name}"}) for name in ("cpu", "cu130")]
    result = fit(found(*builds), Cluster(workers=1))
    assert result.faults == []
    [told] = result.notes
    assert told.startswith("the nodes have torch 2.99.0+cpu, this machine ")


def test_places_are_counted_on_each_node() -> None:
    three = found(node("a", cpus=3), node("b", cpus=3))
    assert fit(three, Cluster(workers=2, threads_per_worker=2)).faults == []
    [line] = fit(three, Cluster(workers=3, threads_per_worker=2)).faults
    assert line.startswith(
        "cluster.workers: 3 workers of 2 CPU cores are wanted, the cluster has places for 2; lower"
    )


def test_gpus_count_where_workers_take_them() -> None:
    gpus = node("a", cpus=8, has={"CPU": 8.0, "GPU": 2.0}, free={"CPU": 8.0, "GPU": 0.0})
    [line] = fit(found(gpus), Cluster(workers=3)).faults
    assert "3 workers of 1 CPU cores and a GPU are wanted, the cluster has places for 2" in line
    [line] = fit(found(node("a")), Cluster(workers=1, gpus_per_worker=1)).faults
    assert "the cluster has places for 0" in line
    [note] = fit(found(gpus), Cluster(workers=2)).notes
    assert note.startswith("of the cluster's 2 places for workers 2 are taken; the job waits for 2")


def test_what_an_autoscaler_may_start_counts() -> None:
    groups = [{"name": "g", "has": {"CPU": 4.0}, "most": 3}]
    scaled = found(node("a", cpus=1), groups=groups, autoscales=True)
    result = fit(scaled, Cluster(workers=12))
    assert result.faults == []
    assert result.notes[0].startswith("the cluster has places for 1 of 12 workers now; its auto")
    [line] = fit(scaled, Cluster(workers=13)).faults
    assert "has places for 1, 12 where its autoscaler has started all it may; lower" in line


def test_an_autoscaler_of_unknown_limits_is_waited_for() -> None:
    booting = found(node("head", cpus=0), autoscales=True)
    result = fit(booting, Cluster(workers=8, gpus_per_worker=1))
    assert result.faults == []
    [line] = result.notes
    assert line.startswith("the cluster has places for 0 of 8 workers now; its autoscaler has to")
