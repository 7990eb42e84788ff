"""Bandwidths between the nodes that have workers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manyfaces.cluster.preflight import bandwidth
from manyfaces.cluster.preflight.nodes import Nodes
from manyfaces.cluster.preflight.probes import System
from manyfaces.cluster.preflight.report import Network, NodeReport, Pair

NETWORK_S, ROUND_S = 120.0, 20.0
"""Longest wait for all nodes to join or reduce; for each round of pairs, at 100 Mbit/s three times
what it takes."""


class _Group:
    """Nodes that measure together; why some of them could not, in `faults` by id."""

    def __init__(self, nodes: Nodes, faults: dict[str, str], ids: Sequence[str]) -> None:
        self.nodes, self.faults, self.ids = nodes, faults, ids

    def ask(
        self,
        method: str,
        arguments: Callable[[str], tuple[Any, ...]] = lambda node: (),
        timeout_s: float = NETWORK_S,
    ) -> dict[str, Any]:
        """What the method returns on every node of the group; nothing where it fails on one."""
        told = self.nodes.ask(method, arguments, of=self.ids, timeout_s=timeout_s, may_fail=True)
        failed = {node: str(each) for node, each in told.items() if isinstance(each, RuntimeError)}
        lost = {node: self.nodes.faults[node] for node in self.ids if node not in told}
        self.faults |= failed | lost
        return {} if failed or lost else told


def network(
    nodes: Nodes, workers: Sequence[NodeReport], systems: Mapping[str, System]
) -> Network | None:
    """Bandwidths between those of these nodes that answer; None for fewer than two."""
    there = [node for node in workers if node.id in nodes.actors]
    if len(there) < 2:
        return None
    has_gpus = all(systems[node.id].torch_gpus for node in there)
    backend = "nccl" if has_gpus else "gloo"
    ranks, faults = _met(nodes, there)
    group, found = _Group(nodes, faults, list(ranks)), dict[str, Any]()
    if len(ranks) > 1 and group.ask("join", lambda node: (backend, ranks[node], len(ranks))):
        if rates := group.ask("all_reduce"):
            found["all_reduce_bytes_s"] = min(rates.values())
        rounds = bandwidth.rounds(len(ranks))
        told = group.ask(
            "pairs",
            lambda node: ([each[ranks[node]] for each in rounds],),
            NETWORK_S + ROUND_S * len(rounds),
        )
        names = [node.name for node in there if node.id in ranks]
        found["pairs"] = _pairs(names, rounds, [told[node] for node in ranks if told])
    names_by_id = {node.id: node.name for node in there}
    found["faults"] = {names_by_id[node]: fault for node, fault in faults.items()}
    num_bytes = bandwidth.NUM_BYTES[backend]
    return Network(backend=backend, num_bytes=num_bytes, **found)


def _met(nodes: Nodes, there: Sequence[NodeReport]) -> tuple[dict[str, int], dict[str, str]]:
    """The ranks of the nodes that reach the first of them at which nodes can meet, and why others
    do not."""
    faults: dict[str, str] = {}
    addresses = {node.id: (node.address,) for node in there}
    for first in there:
        opened = nodes.ask("open_store", addresses.__getitem__, of=[first.id], may_fail=True)
        port = opened.get(first.id)
        if isinstance(port, int):
            break
        faults[first.id] = str(port or nodes.faults.get(first.id))
    else:
        return {}, faults
    others = [node for node in there if node is not first and node.id not in faults]
    told = nodes.ask(
        "reach_store",
        lambda node: (first.address, port),
        of=[node.id for node in others],
        may_fail=True,
    )
    where = f"{first.name} cannot be reached from here at {first.address}:{port}"
    faults |= {node: where for node, each in told.items() if isinstance(each, RuntimeError)}
    met = [first.id, *(node for node in told if node not in faults)]
    return {node: rank for rank, node in enumerate(met)}, faults


def _pairs(
    names: Sequence[str],
    rounds: Sequence[Sequence[int | None]],
    rates: Sequence[Sequence[float | None]],
) -> tuple[Pair, ...]:
    """The rates of all pairs that have met, from those that each rank has measured in each round;
    a pair's is that of the slower of the two. None where nothing was measured."""
    if not rates:
        return ()
    pairs = []
    for number, partners in enumerate(rounds):
        for one, other in enumerate(partners):
            if other is not None and one < other:
                both = rates[one][number], rates[other][number]
                slower = min(rate for rate in both if rate is not None)
                pairs.append(Pair(one=names[one], other=names[other], bytes_s=slower))
    return tuple(pairs)
