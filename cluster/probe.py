"""What a cluster is, looked at from inside: the driver of a short job that asks every node before
anything is trained.

Run as `python -m manyfaces.cluster.probe CHECKS CONFIG SECONDS`: `CHECKS` is a module with
`begin(config, mark)`, `check(config, mark)` and `end(config, mark)`, which take the configuration's
text and a name of this probe's own; the first and the last run beside the driver, `check` on every
node. The first two return what is wrong, a line each. The last line that is printed is a JSON
object. Nodes may lack what manyfaces needs, so this file imports Python's own modules and
what Ray brings.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manyfaces.cluster import autoscaler

MARK = "MANYFACES-PROBE "
"""How the line begins that holds the answer."""


def versions(names: list[str]) -> dict[str, str | None]:
    """The installed version of each distribution; None where there is none."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe_node(checks: str, config: str, mark: str, names: list[str]) -> dict[str, Any]:
    """What one node says of itself; without `checks`, of its versions alone."""
    found = {"python": platform.python_version(), "versions": versions(names)}
    return {**found, "faults": _call(checks, "check", config, mark) if checks else []}


def _call(checks: str, function: str, config: str, mark: str) -> list[str]:
    """What is wrong by that function; what it raises is wrong as well."""
    try:
        return list(getattr(importlib.import_module(checks), function)(config, mark) or ())
    except ImportError as error:
        return [f"manyfaces cannot be imported: {error}"]
    except Exception as error:
        return [(str(error) or repr(error)).splitlines()[0]]


def probe(checks: str, config: str, wait_s: float, names: list[str]) -> dict[str, Any]:
    """What the nodes say, and what they have."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    mark = f".manyfaces-probe-{uuid.uuid4().hex[:8]}"
    faults = _call(checks, "begin", config, mark)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    try:
        answers = dict(_ask(nodes, wait_s, "" if faults else checks, config, mark, names))
    finally:
        _call(checks, "end", config, mark)
    free = ray._private.state.available_resources_per_node()
    return {
        "faults": faults,
        "driver": platform.node(),
        "nodes": [
            {
                "id": node["NodeID"],
                "name": f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                "has": node["Resources"],
                "free": free.get(node["NodeID"], {}),
                **answers.get(node["NodeID"], {}),
            }
            for node in nodes
        ],
        "autoscales": autoscaler.autoscales(),
        "groups": autoscaler.launched_groups(),
    }


def _ask(
    nodes: list[dict[str, Any]], wait_s: float, *arguments: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The answer of each node, by its id; `fault` says why there is none. A node that is `lost` has
    just died, which Ray notices after some seconds."""
    import ray
    from ray.exceptions import NodeDiedError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # As `__main__` it travels by value, to nodes that may have another manyfaces installed.
    remote = ray.remote(num_cpus=0, max_retries=0)(describe_node)
    asked: dict[Any, str] = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[remote.options(scheduling_strategy=here).remote(*arguments)] = node["NodeID"]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=wait_s)
    for answer in done:
        try:
            yield asked[answer], ray.get(answer)
        except (NodeDiedError, TaskUnschedulableError):
            yield asked[answer], {"lost": True}
        except Exception as error:
            first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            yield asked[answer], {"fault": first.strip()}
    for answer in late:
        yield asked[answer], {"fault": f"no answer within {wait_s:g} s"}


def main(words: list[str]) -> None:
    """Print the answer."""
    checks, config, wait_s, *names = words
    answer = probe(checks, Path(config).read_text(), float(wait_s), names)
    sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
