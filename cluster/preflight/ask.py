"""Ask every node of a Ray cluster whether a run can work there."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping

from manyfaces.cluster.connection import Code, connected
from manyfaces.cluster.preflight import probes
from manyfaces.cluster.preflight.network import network
from manyfaces.cluster.preflight.nodes import START_S, Nodes
from manyfaces.cluster.preflight.probes import Answer, Folder, FolderAnswer
from manyfaces.cluster.preflight.report import DECODE, NodeReport, Report, Wanted
from manyfaces.cluster.preflight.verdicts import problems

CLOCK_TRIES = 5
Tell = Callable[[str], None]


def preflight(address: str | None, code: Code, wanted: Wanted, tell: Tell) -> Report:
    """Ask all nodes of the cluster at `address`, without one a Ray of this machine; `tell` gets
    what is being asked. Raises `UserError` where no cluster answers."""
    with connected(address, code):
        return _asked(wanted, tell)


def _asked(wanted: Wanted, tell: Tell) -> Report:
    known = {node.id: node for node in _nodes(wanted)}
    nodes = Nodes(list(known))
    try:
        tell(f"machine and software of {len(known)} nodes")
        systems = nodes.ask("system", lambda node: (known[node].address,), timeout_s=START_S)
        skews = _clock_skews(nodes)
        tell("folders")
        folders = _folders(nodes, wanted)
        answers: dict[str, dict[str, Answer]] = {node: {} for node in known}
        for figure in wanted.probes:
            tell(figure)
            for node, answer in _handed_in(nodes, known, wanted, figure).items():
                answers[node][figure] = answer
        tell("network")
        measured = network(nodes, [each for each in known.values() if each.has_workers], systems)
    finally:
        nodes.end()
    reports = tuple(
        node.model_copy(
            update={
                "fault": nodes.faults.get(node.id, ""),
                "system": systems.get(node.id),
                "clock_skew_s": skews.get(node.id),
                "folders": tuple(folders.get(node.id, ())),
                "answers": answers[node.id],
            }
        )
        for node in known.values()
    )
    report = Report(nodes=reports, network=measured)
    return report.model_copy(update={"problems": tuple(problems(report, wanted))})


def _handed_in(
    nodes: Nodes, known: Mapping[str, NodeReport], wanted: Wanted, figure: str
) -> dict[str, Answer]:
    """What the probe of this figure has found on each node; only those with workers decode."""
    function = wanted.probes[figure]
    return nodes.ask(
        "ask",
        lambda node: (function, wanted.payload | {"threads": max(int(known[node].cpus), 1)}),
        of=[node for node in known if known[node].has_workers or figure != DECODE],
    )


def _nodes(wanted: Wanted) -> list[NodeReport]:
    """All nodes that are alive, by name."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    use_gpus = wanted.wants_gpus
    if use_gpus is None:
        use_gpus = any(node["Resources"].get("GPU", 0) for node in alive)
    found = []
    for node in alive:
        host, cpus = node["NodeManagerHostname"], node["Resources"].get("CPU", 0)
        gpus = node["Resources"].get("GPU", 0)
        found.append(
            NodeReport(
                id=node["NodeID"],
                name=host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}",
                address=node["NodeManagerAddress"],
                cpus=cpus,
                gpus=gpus,
                has_workers=gpus > 0 if use_gpus else cpus > 0,
            )
        )
    return sorted(found, key=lambda node: node.name)


def _clock_skews(nodes: Nodes) -> dict[str, float]:
    """Each node's clock minus this one's: of several questions the one that was answered quickest,
    halfway between question and answer."""
    skews: dict[str, float] = {}
    for node in list(nodes.actors):
        quickest = float("inf")
        for _ in range(CLOCK_TRIES):
            before = time.time()
            if node not in (told := nodes.ask("clock", of=[node])):
                break
            after = time.time()
            if after - before < quickest:
                quickest, skews[node] = after - before, told[node] - (before + after) / 2
    return skews


def _folders(nodes: Nodes, wanted: Wanted) -> dict[str, list[FolderAnswer]]:
    """How each folder is on each node; nothing is left behind."""
    token = uuid.uuid4().hex[:8]
    names = {node: probes.marker(token, node[:12]) for node in nodes.actors}
    found: dict[str, list[FolderAnswer]] = {}
    try:
        for folder in wanted.folders:
            for node, answer in _folder(nodes, folder, names).items():
                found.setdefault(node, []).append(answer)
    finally:
        nodes.ask("remove_files")
        nodes.ask("remove_folders")
    return found


def _folder(nodes: Nodes, folder: Folder, names: Mapping[str, str]) -> dict[str, FolderAnswer]:
    """How this folder is on each node, each of which writes the file of its name there."""
    written: dict[str, FolderAnswer] = nodes.ask("write", lambda node: (folder, names[node]))
    if not folder.is_shared:
        return written
    there = [names[node] for node, answer in written.items() if not answer.fault]
    seen = Counter(
        name for told in nodes.ask("seen", lambda node: (folder, there)).values() for name in told
    )
    return {
        node: answer if answer.fault else answer.model_copy(update={"seen_by": seen[names[node]]})
        for node, answer in written.items()
    }
