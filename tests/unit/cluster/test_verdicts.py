"""What of a preflight counts as wrong: one planted fault each, on nodes that are well otherwise."""

from typing import Any

import pytest

from manyfaces.cluster.preflight.job import read_report, to_json
from manyfaces.cluster.preflight.probes import Answer, Folder, FolderAnswer, System
from manyfaces.cluster.preflight.report import Network, NodeReport, Pair, Problem, Report, Wanted
from manyfaces.cluster.preflight.verdicts import problems, unlike_here

GIB = 1 << 30
VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cpu", "ray": "2.60.0"}
WANTED = Wanted(
    folders=(
        Folder(key="run.dir", path="/runs", is_shared=True, needs_bytes=10 * GIB),
        Folder(key="data.cache_dir", path="/cache", is_shared=False, needs_bytes=100 * GIB),
    )
)


def node(name: str, **changes: Any) -> NodeReport:
    system = System(
        gpus=(),
        driver=None,
        torch_gpus=0,
        interface=None,
        shm_bytes=4 * GIB,
        versions=VERSIONS | changes.pop("versions", {}),
    ).model_copy(update=changes.pop("system", {}))
    run_dir = FolderAnswer(
        key="run.dir", path="/runs", free_bytes=50 * GIB, write_bytes_s=1e8, seen_by=3
    ).model_copy(update=changes.pop("run_dir", {}))
    cache = FolderAnswer(
        key="data.cache_dir", path="/cache", free_bytes=60 * GIB, held_bytes=50 * GIB
    ).model_copy(update=changes.pop("cache", {}))
    dataset = {"fingerprint": "abc", "images": 120, "identities": 20} | changes.pop("dataset", {})
    facts = {
        "address": "10.0.0.1",
        "cpus": 8,
        "gpus": 0,
        "has_workers": True,
        "clock_skew_s": 0.01,
        "system": system,
        "folders": (run_dir, cache),
        "answers": {
            "dataset": Answer(facts=dataset),
            "decode": Answer(facts={"images_per_s": 8000.0}),
        },
    }
    return NodeReport.model_validate({"id": name, "name": name, **facts, **changes})


def pairs(**rates: float) -> Network:
    """Named by their two nodes: `ab=100.0`."""
    return Network(
        backend="gloo",
        num_bytes=1,
        pairs=tuple(Pair(one=n[0], other=n[1], bytes_s=rate) for n, rate in rates.items()),
    )


def found(odd: NodeReport | None = None, wanted: Wanted = WANTED, **more: Any) -> list[Problem]:
    nodes = (node("a"), node("b"), odd or node("c"))
    return problems(Report(nodes=nodes, **more), wanted)


def test_nothing_is_wrong_with_sound_nodes() -> None:
    network = pairs(ab=1e9, ac=0.9e9, bc=1.1e9)
    assert found(wanted=WANTED.model_copy(update={"images_per_s": 24_000}), network=network) == []


@pytest.mark.parametrize(
    ("odd", "figure", "what"),
    [
        (node("c", fault="no answer within 60 s"), "answers", "no answer within 60 s"),
        (node("c", clock_skew_s=-1.2), "clock", "-1.2 s off"),
        (node("c", system={"shm_bytes": 64 << 20}), "/dev/shm", "64 MiB free, 1,024 are needed"),
        (node("c", run_dir={"fault": "Permission denied"}), "run.dir", "Permission denied"),
        (node("c", run_dir={"free_bytes": 9 * GIB}), "run.dir", "9.0 GiB free, the run needs 10.0"),
        (node("c", run_dir={"seen_by": 1}), "run.dir", "seen by 1 of 3 nodes"),
        (node("c", cache={"held_bytes": 0}), "data.cache_dir", "60.0 GiB free"),
        (node("c", versions={"ray": "2.59.0"}), "ray", "has ray 2.59.0, other nodes have 2.60.0"),
        (
            node("c", versions={"torch": "2.12.1+cpu"}),
            "torch",
            "2.12.1+cpu, other nodes have 2.13.0",
        ),
        (node("c", dataset={"fingerprint": "xyz"}), "dataset", "another one"),
        (node("c", answers={"dataset": Answer(fault="/faces: no such folder")}), "dataset", "/fac"),
        (node("c", gpus=8), "GPUs", "Ray counts 8 GPUs, torch 2.13.0+cpu sees none"),
    ],
)
def test_one_fault_is_told_of_its_node_alone(odd: NodeReport, figure: str, what: str) -> None:
    [problem] = found(odd)
    assert (problem.node, problem.figure) == ("c", figure)
    assert what in problem.what
    assert problem.remedy


def test_drivers_are_compared_where_there_are_any() -> None:
    nodes = [node(name, system={"driver": "580.1"}) for name in "ab"]
    nodes += [node("c", system={"driver": "570.2"}), node("head", has_workers=False)]
    [problem] = problems(Report(nodes=tuple(nodes)), Wanted())
    assert (problem.node, problem.figure) == ("c", "driver")


def test_a_folder_of_its_own_on_each_node_is_told_of_all() -> None:
    nodes = tuple(node(name, run_dir={"seen_by": 1}) for name in "ab")
    assert [problem.node for problem in problems(Report(nodes=nodes), WANTED)] == ["a", "b"]
    assert problems(Report(nodes=nodes[:1]), WANTED) == []


def test_a_node_that_decodes_less_than_its_share() -> None:
    wanted = Wanted(images_per_s=20_000)
    slow = node("c", answers={"decode": Answer(facts={"images_per_s": 6000.0})})
    [problem] = found(slow, wanted)
    assert (problem.node, problem.figure) == ("c", "decode")
    assert "decodes 6,000 images/s, the run needs 6,667 of each node" in problem.what
    assert found(slow, Wanted()) == []


def test_a_slow_node_is_told_of_its_pairs_and_the_others_are_not() -> None:
    slow = found(network=pairs(ab=1e9, ac=1e8, bc=1e8))
    assert [problem.node for problem in slow] == ["c", "c"]
    assert "100 MB/s to and from a, pairs usually reach 1,000" in slow[0].what
    # Where one link alone is slow it is told once.
    rates = {"ab": 1e9, "ac": 1e9, "ad": 1e9, "bc": 1e9, "bd": 1e9, "cd": 1e8}
    assert len(found(network=pairs(**rates))) == 1


def test_a_node_that_took_no_part_in_the_network() -> None:
    network = Network(backend="gloo", num_bytes=1, faults={"c": "a cannot be reached from here"})
    [problem] = found(network=network)
    assert (problem.node, problem.figure) == ("c", "network")
    assert "cannot be reached" in problem.what


def test_a_cluster_without_workers() -> None:
    report = Report(nodes=(node("head", has_workers=False),))
    [problem] = problems(report, Wanted(wants_gpus=True))
    assert problem.what == "no node has a GPU for workers"


def test_builds_of_one_release_go_together() -> None:
    cuda = {"torch": "2.13.0+cu130", "python": "3.11.9"}
    assert found(node("c", versions=cuda)) == []


def test_this_machine_is_compared_by_releases() -> None:
    report = Report(nodes=(node("a"), node("b"), node("c", versions={"ray": "2.1.0"})))
    assert unlike_here(report, {"python": "3.11.2", "torch": "2.13.1+cu130"}) == []
    [problem] = unlike_here(report, VERSIONS | {"ray": "2.59.0"})
    assert (problem.node, problem.figure) == ("", "ray")
    assert problem.what == "the nodes have ray 2.60.0, this machine has 2.59.0"


def test_a_report_comes_back_from_what_a_job_printed() -> None:
    report = Report(nodes=(node("a"),), network=pairs(ab=1.0), problems=tuple(found()))
    printed = f"a warning\n{to_json(report)}\nerror: preflight: ..."
    assert read_report(printed) == report
    assert read_report("error: no such folder") is None
