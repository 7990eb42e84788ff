"""Which nodes meet to measure the network between them."""

from collections.abc import Callable, Sequence
from typing import Any

from manyfaces.cluster.preflight import network
from manyfaces.cluster.preflight.report import NodeReport


class Nodes:
    """Nodes of which the first cannot open a port."""

    faults: dict[str, str]

    def __init__(self) -> None:
        self.faults = {}

    def ask(
        self,
        method: str,
        arguments: Callable[[str], tuple[Any, ...]],
        *,
        of: Sequence[str],
        may_fail: bool,
    ) -> dict[str, Any]:
        if method == "open_store":
            [node] = of
            return {node: RuntimeError("no such address") if node == "a" else 29500}
        assert {arguments(node) for node in of} == {("address of b", 29500)}
        return dict.fromkeys(of)


def test_a_node_that_opens_no_port_is_left_out_alone() -> None:
    there = [
        NodeReport(
            id=name, name=name, address=f"address of {name}", cpus=1, gpus=0, has_workers=True
        )
        for name in "abcd"
    ]
    nodes: Any = Nodes()
    assert network._met(nodes, there) == ({"b": 0, "c": 1, "d": 2}, {"a": "no such address"})
    assert network._met(nodes, there[:1]) == ({}, {"a": "no such address"})
