"""Whether a cluster, as `probe` has found it, can run a job: one line for each thing that it
lacks."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from manyfaces.cluster.probe import versions
from manyfaces.cluster.versions import PACKAGES, compute_together, talk_together
from manyfaces.configs.schema import Cluster, Elastic

SHOWN = 3
"""Nodes with the same fault that are named."""
UNKNOWN_LIMIT = 1 << 30
"""Workers for which an autoscaler has a place of which nobody says what it may start."""


@dataclass
class Fit:
    """What was found."""

    faults: list[str] = field(default_factory=list)
    """What has to be mended, a line each."""
    notes: list[str] = field(default_factory=list)
    """What works and is worth knowing."""
    summary: str = ""
    """What there is, in one line."""


def requirements() -> list[Requirement]:
    """What manyfaces needs of a Python environment, extras aside, as this machine's tells it."""
    told = map(Requirement, importlib.metadata.requires("manyfaces") or ())
    return [each for each in told if each.marker is None or each.marker.evaluate({"extra": ""})]


def fit(found: Mapping[str, Any], config: Cluster) -> Fit:
    """Compare the probe's answer with what the workers and manyfaces need."""
    nodes: list[dict[str, Any]] = [node for node in found["nodes"] if not node.get("lost")]
    result = Fit(faults=[f"the driver's node, {found['driver']}: {it}" for it in found["faults"]])
    if lost := [node["name"] for node in found["nodes"] if node.get("lost")]:
        result.notes.append(f"{_names(lost)}: lost by the cluster just now, and not counted")
    answered = [node for node in nodes if "versions" in node]
    told: dict[str, list[str]] = {}
    for node in nodes:
        lines = [node["fault"]] if "fault" in node else node.get("faults", [])
        lines = lines + (_version_faults(node) if "versions" in node else [])
        for line in lines:
            told.setdefault(line, []).append(node["name"])
    result.faults += [f"{_names(names)}: {line}" for line, names in told.items()]
    for name in ("python", *PACKAGES):
        _compare(name, answered, result)
    _count_places(nodes, found["groups"], found["autoscales"], config, result)
    if answered:
        first = answered[0]
        has = ", ".join(f"{name} {first['versions'].get(name)}" for name in ("ray", "torch"))
        places = result.summary
        number = f"{len(nodes)} nodes" if len(nodes) > 1 else "1 node"
        result.summary = f"{number}: Python {first['python']}, {has}; {places}"
    return result


def _names(names: Sequence[str]) -> str:
    """The nodes that have the same fault; of many the first ones."""
    different = list(dict.fromkeys(names))
    if len(different) == 1:
        return f"node {different[0]}"
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return f"nodes {', '.join(different[:SHOWN])}{more}"


def _version_faults(node: Mapping[str, Any]) -> list[str]:
    """What the node has not installed, or in another version than manyfaces needs."""
    needed, has = requirements(), node["versions"]
    faults = []
    supported = importlib.metadata.metadata("manyfaces")["Requires-Python"]
    if supported and not SpecifierSet(supported).contains(node["python"]):
        faults.append(f"Python {node['python']}; manyfaces needs {supported}")
    if lacks := [str(each) for each in needed if has.get(each.name) is None]:
        faults.append(f"not installed: {', '.join(lacks)}")
    for each in needed:
        installed = has.get(each.name)
        if installed and not each.specifier.contains(installed, prereleases=True):
            faults.append(f"{each.name} {installed}; manyfaces needs {each.specifier}")
    return faults


def _compare(name: str, nodes: Sequence[dict[str, Any]], result: Fit) -> None:
    """Tell where nodes have versions that do not go together, or others than this machine."""
    known = [(node, version) for node in nodes if (version := _version(name, node))]
    if not known:
        return
    first, usual = known[0]
    others = [(node, other) for node, other in known if not compute_together(name, usual, other)]
    if others:
        node, other = others[0]
        more = f", and {len(others) - 1} more nodes differ" if len(others) > 1 else ""
        result.faults.append(
            f"the nodes differ: {name} is {usual} on {first['name']} and {other} on "
            f"{node['name']}{more}; install the same on all"
        )
        return
    packages = [PACKAGES[name]] if name in PACKAGES else []
    here = _version(name, {"python": platform.python_version(), "versions": versions(packages)})
    if here and not talk_together(here, usual):
        result.notes.append(
            f"the nodes have {name} {usual}, this machine {here}; the job runs with theirs"
        )


def _version(name: str, node: Mapping[str, Any]) -> str | None:
    """What the node has of a package, or of `python`; None where it has none."""
    version: str | None = node["python"]
    if name in PACKAGES:
        version = node["versions"].get(PACKAGES[name])
    return version


def _count_places(
    nodes: Sequence[dict[str, Any]],
    groups: Sequence[dict[str, Any]],
    autoscales: bool,
    config: Cluster,
    result: Fit,
) -> None:
    """How many workers the nodes have a place for, now and once the autoscaler has started all
    that it may."""
    everywhere = [*nodes, *groups]
    uses_gpu = config.gpus_per_worker == 1 or (
        config.gpus_per_worker == "auto" and any(each["has"].get("GPU", 0) for each in everywhere)
    )
    needs = {"CPU": config.threads_per_worker} | ({"GPU": 1} if uses_gpu else {})
    here = sum(_places(node["has"], needs) for node in nodes)
    free = sum(_places(node["free"], needs) for node in nodes)
    more = sum(_places(group["has"], needs) * group["most"] for group in groups)
    if autoscales and not groups:
        more = UNKNOWN_LIMIT
    each = f"{config.threads_per_worker} CPU cores" + (" and a GPU" if uses_gpu else "")
    wanted = _least(config)
    result.summary = f"places for {here} workers of {each}"
    if wanted > max(here, more):
        scaled = f", {more} where its autoscaler has started all it may" if groups else ""
        result.faults.append(
            f"cluster.workers: {wanted} workers of {each} are wanted, the cluster has places for "
            f"{here}{scaled}; lower cluster.workers or cluster.threads_per_worker, or add nodes"
        )
    elif wanted > here:
        result.notes.append(
            f"the cluster has places for {here} of {wanted} workers now; its autoscaler has to "
            f"start the others within cluster.schedule_timeout_s={config.schedule_timeout_s:g}"
        )
    elif wanted > free:
        result.notes.append(
            f"of the cluster's {here} places for workers {here - free} are taken; the job waits "
            f"for {wanted} up to cluster.schedule_timeout_s={config.schedule_timeout_s:g}"
        )


def _least(config: Cluster) -> int:
    """The fewest workers that the run starts with; for `auto`, one."""
    if isinstance(config.workers, Elastic):
        return config.workers.min
    return 1 if config.workers == "auto" else config.workers


def _places(has: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return int(min(has.get(name, 0) // number for name, number in needs.items()))
