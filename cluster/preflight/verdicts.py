"""What of a preflight is wrong and what to do about it, with all limits and their reasons."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping

from manyfaces.cluster.preflight.probes import FolderAnswer
from manyfaces.cluster.preflight.report import (
    DATASET,
    DECODE,
    Network,
    NodeReport,
    Problem,
    Report,
    Wanted,
)
from manyfaces.cluster.versions import compute_together, talk_together

MOST_SKEW_S = 1.0
"""Leases, timeouts of a stop and the times in the record are compared between nodes to about a
second; NTP holds clocks to milliseconds, so that more means that it does not run."""
LEAST_SHM_BYTES = 1 << 30
"""NCCL exchanges between the GPUs of a node through /dev/shm, and its documentation asks for 1 GB;
Ray keeps its objects there too. A container has 64 MiB where nobody has set more."""
SLOW_PAIR = 1 / 3
"""A pair below this share of what pairs usually reach is slow: a link that fell back to a lower
rate has a quarter or a tenth (Ethernet's 100, 25, 10 and 1 Gbit/s), while equal links of busy nodes
were measured to differ by half."""
MIB, GIB = 1 << 20, 1 << 30


def problems(report: Report, wanted: Wanted) -> list[Problem]:
    """What is wrong with the nodes and between them."""
    found: list[Problem] = []
    for node in report.nodes:
        if node.fault:
            found.append(_dead(node))
        found += _machine(node, wanted)
        found += _folders(node, wanted, sum(not each.fault for each in report.nodes))
        found += _handed_in(node)
    found += _datasets(report)
    found += _decoding(report, wanted)
    found += _versions(report)
    if report.network is not None:
        found += _network(report.network)
    if not any(node.has_workers for node in report.nodes):
        found.append(_no_workers(wanted))
    return found


def unlike_here(report: Report, here: Mapping[str, str]) -> list[Problem]:
    """Where the nodes have other versions than this machine."""
    found = []
    for name, usual in _usual_versions(report).items():
        mine = here.get(name)
        if mine is None or talk_together(usual, mine):
            continue
        found.append(
            Problem(
                node="",
                figure=name,
                what=f"the nodes have {name} {usual}, this machine has {mine}",
                remedy=f"install {name} {usual} here, or {mine} on the nodes",
            )
        )
    return found


def _dead(node: NodeReport) -> Problem:
    return Problem(
        node=node.name,
        figure="answers",
        what=node.fault,
        remedy=f"see whether {node.address} is overloaded or lost (`ray list nodes`), and what its "
        "/tmp/ray/session_latest/logs say",
    )


def _no_workers(wanted: Wanted) -> Problem:
    lacks = "a GPU" if wanted.wants_gpus else "a CPU"
    return Problem(
        node="",
        figure="GPUs",
        what=f"no node has {lacks} for workers",
        remedy="start nodes that have, or set cluster.gpus_per_worker=0",
    )


def _machine(node: NodeReport, wanted: Wanted) -> Iterator[Problem]:
    system = node.system
    if system is None:
        return
    if node.has_workers and node.gpus and not system.torch_gpus and wanted.wants_gpus is not False:
        yield Problem(
            node=node.name,
            figure="GPUs",
            what=f"Ray counts {node.gpus:g} GPUs, torch {system.versions.get('torch')} sees none",
            remedy="install a CUDA build of torch that the driver "
            f"({system.driver or 'none found'}) is new enough for",
        )
    if node.has_workers and system.shm_bytes < LEAST_SHM_BYTES:
        yield Problem(
            node=node.name,
            figure="/dev/shm",
            what=f"/dev/shm has {system.shm_bytes / MIB:,.0f} MiB free, "
            f"{LEAST_SHM_BYTES / MIB:,.0f} are needed",
            remedy="start its container with --shm-size=8g, on Kubernetes mount an emptyDir with "
            "`medium: Memory` at /dev/shm",
        )
    if node.clock_skew_s is not None and abs(node.clock_skew_s) > MOST_SKEW_S:
        yield Problem(
            node=node.name,
            figure="clock",
            what=f"its clock is {node.clock_skew_s:+,.1f} s off",
            remedy="have chrony or another NTP service run there (`timedatectl` shows it)",
        )


def _folders(node: NodeReport, wanted: Wanted, num_nodes: int) -> Iterator[Problem]:
    needs = {folder.key: folder.needs_bytes for folder in wanted.folders}
    for folder in node.folders:
        where = f"{folder.key} {folder.path}"
        if folder.fault:
            yield Problem(
                node=node.name,
                figure=folder.key,
                what=f"{where}: cannot be written ({folder.fault})",
                remedy=f"mount it there and let this user write, or set {folder.key} to a folder "
                "where every node can",
            )
            continue
        if _stands_alone(folder, num_nodes):
            yield Problem(
                node=node.name,
                figure=folder.key,
                what=f"{where}: what this node writes there is seen by {folder.seen_by} of "
                f"{num_nodes} nodes",
                remedy=f"set {folder.key} to a folder of a file system that all nodes share",
            )
        needed = needs.get(folder.key)
        has = (folder.free_bytes or 0) + folder.held_bytes
        if needed is not None and has < needed:
            yield Problem(
                node=node.name,
                figure=folder.key,
                what=f"{where}: {has / GIB:,.1f} GiB free, the run needs {needed / GIB:,.1f}",
                remedy=_less_space(folder.key),
            )


def _stands_alone(folder: FolderAnswer, num_nodes: int) -> bool:
    """Whether half of the nodes or more do not see what this one has written: an odd node is then
    named alone, and where each has a folder of its own, all are."""
    return folder.seen_by is not None and num_nodes > 1 and 2 * folder.seen_by <= num_nodes


def _less_space(key: str) -> str:
    if key == "data.cache_dir":
        return "make room, name another disk in data.cache_dir, or lower data.cache_gb"
    return f"make room, name another disk in {key}, or keep fewer checkpoints (checkpoint.keep)"


def _handed_in(node: NodeReport) -> Iterator[Problem]:
    remedies = {
        DATASET: "see that the path is mounted there, or that the store's credentials are set in "
        "the environment of the node",
        DECODE: "install the same packages as on the other nodes",
    }
    for figure, answer in node.answers.items():
        if answer.fault:
            yield Problem(
                node=node.name,
                figure=figure,
                what=f"{figure}: {answer.fault}",
                remedy=remedies.get(figure, "set the store's credentials in its environment"),
            )


def _datasets(report: Report) -> Iterator[Problem]:
    """Nodes that see another dataset than most."""
    prints = {
        node.name: str(node.answers[DATASET].facts["fingerprint"])
        for node in report.nodes
        if "fingerprint" in getattr(node.answers.get(DATASET), "facts", {})
    }
    for name in _others(prints):
        yield Problem(
            node=name,
            figure=DATASET,
            what="dataset: another one than on the other nodes (its manifest differs)",
            remedy="copy it there anew, or name a folder that all nodes share",
        )


def _decoding(report: Report, wanted: Wanted) -> Iterator[Problem]:
    """Nodes that decode less than their share of what the run needs."""
    nodes = [node for node in report.nodes if node.has_workers]
    if wanted.images_per_s is None or not nodes:
        return
    share = wanted.images_per_s / len(nodes)
    for node in nodes:
        answer = node.answers.get(DECODE)
        rate = float(answer.facts["images_per_s"]) if answer and answer.facts else None
        if rate is not None and rate < share:
            yield Problem(
                node=node.name,
                figure=DECODE,
                what=f"decodes {rate:,.0f} images/s, the run needs {share:,.0f} of each node",
                remedy="raise data.decode_threads as far as the node has cores, take nodes with "
                "more cores or more nodes, or store the images at data.image_px",
            )


def _versions(report: Report) -> Iterator[Problem]:
    """Versions that do not go together with those of most nodes."""
    usual = _usual_versions(report)
    for node in report.nodes:
        if node.system is None:
            continue
        for name, mine in _versions_of(node).items():
            if not compute_together(name, mine, usual[name]):
                yield Problem(
                    node=node.name,
                    figure=name,
                    what=f"has {name} {mine}, other nodes have {usual[name]}",
                    remedy=f"install {name} {usual[name]} there",
                )


def _versions_of(node: NodeReport) -> dict[str, str]:
    """Versions of a node; of the driver where it has one, as heads often have no GPU."""
    assert node.system is not None
    driver = {"driver": node.system.driver} if node.system.driver else {}
    return node.system.versions | driver


def _usual_versions(report: Report) -> dict[str, str]:
    """The version that most nodes have of each; of equally many the first node's."""
    counts: dict[str, Counter[str]] = {}
    for node in report.nodes:
        for name, number in (_versions_of(node) if node.system else {}).items():
            counts.setdefault(name, Counter())[number] += 1
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def _network(network: Network) -> Iterator[Problem]:
    for name, fault in network.faults.items():
        yield Problem(
            node=name,
            figure="network",
            what=f"network: {fault}",
            remedy="open all ports between the nodes, and set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME there to the interface that connects them",
        )
    rates: dict[str, list[float]] = {}
    for pair in network.pairs:
        for name in (pair.one, pair.other):
            rates.setdefault(name, []).append(pair.bytes_s)
    if not rates:
        return
    # The median over nodes of each one's fastest pair: of three nodes one slow one makes two of the
    # three pairs slow, whose median would then be slow too.
    usual = statistics.median(max(each) for each in rates.values())
    for pair in network.pairs:
        if pair.bytes_s < SLOW_PAIR * usual:
            # Its own pairs tell which of the two is slow with others as well.
            names = sorted((pair.one, pair.other), key=lambda name: statistics.median(rates[name]))
            yield Problem(
                node=names[0],
                figure="network",
                what=f"{pair.bytes_s / 1e6:,.0f} MB/s to and from {names[1]}, pairs usually reach "
                f"{usual / 1e6:,.0f}",
                remedy="look at the link's rate and errors there (`ethtool`, `ibstat`), or leave "
                "the node out",
            )


def _others(values: Mapping[str, str]) -> list[str]:
    """Names whose value is not that of most."""
    usual = Counter(values.values()).most_common(1)
    return [name for name, value in values.items() if value != usual[0][0]]
