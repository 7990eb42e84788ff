"""A preflight of three Ray nodes on one machine, of which one has planted faults."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import manyfaces, recipe
from ray_nodes import STORE_BYTES, ray_cluster

from manyfaces.cluster.jobs import package
from manyfaces.cluster.preflight import ask
from manyfaces.cluster.preflight.report import Wanted

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

OTHER_VERSION = "0.18.3"
HANGS = """
import sys
import time

if any("default_worker" in word for word in sys.orig_argv):
    time.sleep(600)
"""


def python_path(*first: Path) -> str:
    return os.pathsep.join([*map(str, first), os.environ.get("PYTHONPATH", "")])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(dataset_path: Path) -> Iterator[str]:
    """Where the dataset is served."""
    handler = partial(Quiet, directory=str(dataset_path.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{dataset_path.name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    """A cluster whose head is sound, and its dashboard."""
    with ray_cluster(monkeypatch, num_cpus=1) as (nodes, address):
        yield nodes, address


def add_node(nodes: Any, **environment: str) -> str:
    """Add a node whose processes have these environment variables; its id."""
    added = nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=environment)
    return str(added.node_id)


@pytest.fixture
def faulty(cluster: tuple[Any, str], tmp_path: Path) -> str:
    """A sound node, and one without a home and with another version of DeepSpeed: its id."""
    nodes, _ = cluster
    info = tmp_path / "path" / f"deepspeed-{OTHER_VERSION}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {OTHER_VERSION}\n"
    )
    (tmp_path / "home").write_text("a file")
    add_node(nodes)
    return add_node(nodes, HOME=str(tmp_path / "home"), PYTHONPATH=python_path(tmp_path / "path"))


def test_planted_faults_are_told_of_their_node(
    cluster: tuple[Any, str], faulty: str, url: str, dataset_path: Path, tmp_path: Path
) -> None:
    nodes, dashboard = cluster
    data = {"path": url, "cache_dir": "~/preflight/cache", "cache_gb": 0.1}
    config = recipe(tmp_path, dataset_path, data=data)
    before = sorted(tmp_path.rglob("*"))

    joined = manyfaces("preflight", config, "--address", nodes.address, "--json")
    assert joined.returncode == 2, joined.stderr
    told = json.loads(joined.stdout)
    assert told["ok"] is False
    assert len(told["nodes"]) == 3
    [odd] = [node for node in told["nodes"] if node["id"] == faulty]
    # The nodes share a machine's cores: now and then a pair of them has to wait for some.
    wrong = {(problem["node"], problem["figure"]) for problem in told["problems"]}
    wrong = {each for each in wrong if each[1] != "network"}
    expected = {(odd["name"], "data.cache_dir"), (odd["name"], "deepspeed")}
    assert wrong == expected, told["problems"]
    assert "error: preflight: faults on " in joined.stderr
    for node in told["nodes"]:
        assert node["fault"] == ""
        assert abs(node["clock_skew_s"]) < 1
        assert node["answers"]["dataset"]["facts"]["images"] == 120
        assert node["answers"]["decode"]["facts"]["images_per_s"] > 0
        run_dir, cache = node["folders"]
        assert run_dir["seen_by"] == 3
        assert (cache["fault"] != "") == (node["id"] == faulty)
    assert told["network"]["backend"] == "gloo"
    assert told["network"]["all_reduce_bytes_s"] > 0
    names = {node["name"] for node in told["nodes"]}
    met = {frozenset((pair["one"], pair["other"])) for pair in told["network"]["pairs"]}
    assert met == {frozenset(names - {name}) for name in names}
    assert sorted(tmp_path.rglob("*")) == before

    # From elsewhere a job asks, and says the same.
    submitted = manyfaces("preflight", config, "--address", dashboard)
    assert submitted.returncode == 2, submitted.stderr
    lines = submitted.stdout.splitlines()
    where = f"{odd['name']}: data.cache_dir ~/preflight/cache: cannot be written (Not a directory)"
    assert where in lines
    assert lines[lines.index(where) + 1].startswith("  mount it there")
    version = f"{odd['name']}: has deepspeed {OTHER_VERSION}, other nodes have "
    assert any(line.startswith(version) for line in lines)
    assert "Traceback" not in submitted.stdout + submitted.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_node_that_does_not_answer_is_named_and_the_others_are_asked(
    cluster: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, _ = cluster
    add_node(nodes)
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    hung = add_node(nodes, PYTHONPATH=python_path(tmp_path))
    monkeypatch.setattr(ask, "START_S", 45.0)
    report = ask.preflight(nodes.address, package, Wanted(), lambda what: None)
    [problem] = report.problems
    [name] = [node.name for node in report.nodes if node.id == hung]
    assert (problem.node, problem.what) == (name, "no answer within 45 s (system)")
    assert [node.system is None for node in report.nodes if node.id != hung] == [False, False]
    assert report.network is not None
    assert report.network.all_reduce_bytes_s is not None


def test_this_machine_alone(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, dataset_path)
    done = manyfaces("preflight", config, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert [node["fault"] for node in told["nodes"]] == [""]
    assert told["network"] is None
    broken = manyfaces("preflight", config, f"data.path={tmp_path}")
    assert broken.returncode == 2
    assert f"dataset {tmp_path}: no manyfaces.json in it" in broken.stdout
