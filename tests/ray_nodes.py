"""A Ray cluster on this machine, for tests that submit jobs to it."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STORE_BYTES = 100 << 20


@contextlib.contextmanager
def ray_cluster(monkeypatch: pytest.MonkeyPatch, num_cpus: int) -> Iterator[tuple[Any, str]]:
    """The cluster, of one node with so many CPUs at first, and the address of its dashboard."""
    from ray.cluster_utils import Cluster

    # A job's `python` is the cluster's first.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {
        "num_cpus": num_cpus,
        "include_dashboard": True,
        "dashboard_port": port,
        "object_store_memory": STORE_BYTES,
    }
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes, f"http://127.0.0.1:{port}"
    finally:
        nodes.shutdown()
