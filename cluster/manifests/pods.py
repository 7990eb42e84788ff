"""The pods of a RayJob: what each has, where it is placed, and the scripts that run in it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manyfaces.cluster.manifests.nodes import TRAIN, Nodes
from manyfaces.cluster.manifests.volumes import Claim, Placed

FOLDER = "/etc/manyfaces"
"""Where the configuration and the scripts are in every pod."""
MORE_GRACE_S = 30
"""A pod may live so much longer than a checkpoint may take, for what is told afterwards."""
HEAD = {"cpu": "2", "memory": "8Gi"}
"""What the head's pod has: Ray's control service, the dashboard, and the driver of the run."""
SPOT = {
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "gke": ("cloud.google.com/gke-spot", "true"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
}
"""Label of the nodes that may be taken away, by who runs the cluster; Azure and Google taint them
with it too."""


@dataclass(frozen=True)
class Settings:
    """What a RayJob needs that no configuration of a run says."""

    image: str
    name: str | None = None
    namespace: str | None = None
    claims: tuple[Claim, ...] = ()
    token_secret: str | None = None
    mlflow_secret: str | None = None
    store_secret: str | None = None
    memory_gb: float | None = None
    spot: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[str, ...] = ()
    retries: int = 3
    deadline_hours: float | None = None


@dataclass(frozen=True)
class Pods:
    """What the pods of a job have in common."""

    settings: Settings
    place: Placed
    files: str
    grace_s: int

    def template(
        self, container: str, before_stop: str, resources: Mapping[str, str], workers: int
    ) -> dict[str, Any]:
        """A pod of one container, which runs this script before it is ended."""
        env = _environment(self.settings)
        return {
            "spec": {
                "terminationGracePeriodSeconds": self.grace_s,
                "securityContext": {"runAsNonRoot": True},
                "containers": [
                    {
                        "name": container,
                        "image": self.settings.image,
                        "imagePullPolicy": "IfNotPresent",
                        **env,
                        "lifecycle": {
                            "preStop": {"exec": {"command": ["sh", f"{FOLDER}/{before_stop}"]}}
                        },
                        "resources": {"requests": {**resources}, "limits": {**resources}},
                        "volumeMounts": [
                            {"name": "files", "mountPath": FOLDER, "readOnly": True},
                            {"name": "shm", "mountPath": "/dev/shm"},
                            *self.place.mounts,
                        ],
                    }
                ],
                "volumes": [
                    {"name": "files", "configMap": {"name": self.files}},
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _shm(workers)}},
                    *self.place.volumes,
                ],
            }
        }

    def worker(self, nodes: Nodes) -> dict[str, Any]:
        """The pod of a node's workers."""
        resources = {"cpu": str(nodes.cpus)}
        if self.settings.memory_gb is not None:
            resources["memory"] = f"{self.settings.memory_gb:g}G"
        if nodes.gpus:
            resources["nvidia.com/gpu"] = str(nodes.gpus)
        pod = self.template("ray-worker", "drain.sh", resources, nodes.workers)
        selector, tolerations = _placement(self.settings, nodes)
        if selector:
            pod["spec"]["nodeSelector"] = selector
        if tolerations:
            pod["spec"]["tolerations"] = tolerations
        return pod


def _shm(workers: int) -> str:
    """Ray's object store and the buffers of NCCL; a container's own 64 MB are too few."""
    return f"{2 + workers}Gi"


def _environment(settings: Settings) -> dict[str, Any]:
    """The credentials of a container, each by the name of its Secret."""
    found: dict[str, Any] = {}
    if secret := settings.mlflow_secret:
        found["env"] = [
            {
                "name": f"MLFLOW_TRACKING_{key.upper()}",
                "valueFrom": {"secretKeyRef": {"name": secret, "key": key}},
            }
            for key in ("username", "password")
        ]
    if secret := settings.store_secret:
        found["envFrom"] = [{"secretRef": {"name": secret}}]
    return found


def _placement(settings: Settings, nodes: Nodes) -> tuple[dict[str, str], list[dict[str, str]]]:
    """On which nodes the workers' pods are placed, and which taints of these they bear."""
    selector, tolerations = dict(settings.node_selector), []
    if nodes.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if settings.spot is not None:
        label, value = SPOT[settings.spot]
        selector[label] = value
        tolerations.append(
            {"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        )
    for word in settings.tolerations:
        key, equals, value = word.partition("=")
        tolerations.append(
            {"key": key, "operator": "Equal", "value": value}
            if equals
            else {"key": key, "operator": "Exists"}
        )
    return selector, tolerations


def scripts(grace_s: float) -> dict[str, str]:
    """What is run in the pods, by the file's name."""
    seconds = math.ceil(grace_s)
    return {
        "train.sh": f"""\
# Runs on the head. `exec` keeps the process id, by which stop.sh finds the driver.
echo $$ > /tmp/manyfaces.pid
exec {TRAIN} {FOLDER}/config.yaml --address auto
""",
        "stop.sh": """\
# Runs before the head's pod ends: the driver has a checkpoint saved, and ends with 75.
pid=$(cat /tmp/manyfaces.pid 2> /dev/null) || exit 0
kill -TERM "$pid" 2> /dev/null || exit 0
while kill -0 "$pid" 2> /dev/null; do sleep 1; done
""",
        "drain.sh": f"""\
# Runs before a worker's pod ends: Ray tells the workers, which save a checkpoint in time.
ray drain-node --address "$RAY_ADDRESS" --reason DRAIN_NODE_REASON_PREEMPTION \\
  --reason-message "the pod is about to end" --deadline-remaining-seconds {seconds} || exit 0
end=$(($(date +%s) + {seconds}))
while [ "$(date +%s)" -lt "$end" ] && ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1
do sleep 1; done
""",
    }
