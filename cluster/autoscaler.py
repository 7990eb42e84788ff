"""Whether a cluster starts nodes by itself, and which. For a process that Ray is connected in; this
file imports Python's own modules and what Ray brings."""

import json
import re
from pathlib import Path
from typing import Any

LAUNCHED = "~/ray_bootstrap_config.yaml"
"""What `ray up` leaves on the head: the cluster as it is to be."""
_STATUS = b"__autoscaling_status"
_STARTED_BY_HAND = re.compile(r"node_[0-9a-f]{56}")
"""How the autoscaler names the type of a node that somebody else has started: by the node's id."""


def autoscales() -> bool:
    """Whether an autoscaler may start more nodes than there are. Its first version runs on every
    cluster and only watches where it was given nothing to start: each node is then a type of its
    own."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if Path(LAUNCHED).expanduser().exists() or is_autoscaler_v2(fetch_from_server=True):
        return True
    report = json.loads(_internal_kv_get(_STATUS) or b"{}").get("autoscaler_report") or {}
    return any(_STARTED_BY_HAND.fullmatch(kind) is None for kind in report.get("active_nodes", ()))


def launched_groups() -> list[dict[str, Any]]:
    """What `ray up` may start, where this process runs on its head: groups of nodes with the
    resources of each, and the most nodes of it. Empty where that is not known."""
    import yaml

    file = Path(LAUNCHED).expanduser()
    if not file.exists():
        return []
    told = yaml.safe_load(file.read_text())
    kinds, most, head = told["available_node_types"], told["max_workers"], told["head_node_type"]
    if not all(kind.get("resources") for kind in kinds.values()):
        return []
    return [
        {
            "name": name,
            "has": kind["resources"],
            "most": 1 if name == head else min(kind.get("max_workers", most), most),
        }
        for name, kind in kinds.items()
    ]
