"""A file for Ray's cluster launcher (`ray up`): machines of a cloud with manyfaces installed at
pinned versions, to which jobs are then submitted."""

from dataclasses import dataclass
from typing import Any, Literal

from manyfaces.cluster.manifests.install import Pinned
from manyfaces.cluster.manifests.nodes import Nodes
from manyfaces.cluster.manifests.text import commented_yaml, dns_name
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config

Provider = Literal["aws", "gcp"]
HEAD_TYPES: dict[str, str] = {"aws": "m6i.2xlarge", "gcp": "n2-standard-8"}
"""The head's machine where nobody names one: Ray's control service and the driver of the run."""
CLOUD_PACKAGES: dict[str, str] = {"aws": "boto3", "gcp": "google-api-python-client==2.202.0"}
"""What Ray's autoscaler on the head asks the cloud by; the version of the first is among the
pins."""
HEAD, WORKERS = "head", "workers"
PORT = 6379


@dataclass(frozen=True)
class Settings:
    """What a cluster in a cloud needs that no configuration of a run says."""

    provider: Provider
    region: str
    worker_type: str
    machine_image: str
    zone: str | None = None
    project: str | None = None
    head_type: str | None = None
    spot: bool = False
    disk_gb: int = 200
    idle_minutes: float = 15
    ssh_user: str = "ubuntu"
    setup: tuple[str, ...] = ()


def ray_up(config: Config, nodes: Nodes, pinned: Pinned, settings: Settings) -> str:
    """The file. Raises `UserError` where the provider needs a setting that is missing."""
    head_type = settings.head_type or HEAD_TYPES[settings.provider]
    home = f"/home/{settings.ssh_user}"
    folder = f"{home}/manyfaces"
    start = f"export PATH={folder}/venv/bin:$PATH RAY_AUTH_MODE=token; ulimit -n 65536; ray start"
    tree = {
        "cluster_name": dns_name(config.run.name),
        "max_workers": nodes.most,
        "idle_timeout_minutes": settings.idle_minutes,
        "provider": _provider(settings),
        "auth": {"ssh_user": settings.ssh_user},
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {
                "resources": {"CPU": 0},
                "node_config": _machine(settings, head_type),
            },
            WORKERS: {
                "min_workers": nodes.least,
                "max_workers": nodes.most,
                "resources": {"CPU": nodes.cpus, "GPU": nodes.gpus},
                "node_config": _worker(settings, nodes),
            },
        },
        "file_mounts": {
            f"{folder}/{pinned.wheel.name}": str(pinned.wheel.resolve()),
            f"{folder}/{pinned.constraints.name}": str(pinned.constraints.resolve()),
            f"{home}/.ray/auth_token": "~/.ray/auth_token",
        },
        "setup_commands": [*_install(pinned, folder), *settings.setup],
        "head_setup_commands": [
            pinned.pip_install(
                folder, pip=f"{folder}/venv/bin/pip", what=CLOUD_PACKAGES[settings.provider]
            )
        ],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            f"{folder}/venv/bin/ray stop",
            f"{start} --head --num-cpus=0 --port={PORT} --dashboard-host=127.0.0.1 "
            "--disable-usage-stats --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            f"{folder}/venv/bin/ray stop",
            f"{start} --address=$RAY_HEAD_IP:{PORT} --disable-usage-stats",
        ],
    }
    head = _HEAD.format(packages=CLOUD_PACKAGES[settings.provider])
    return commented_yaml([tree], head, _COMMENTS)


def _provider(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {"type": settings.provider, "region": settings.region}
    if settings.provider == "gcp":
        for option, value in (("--zone", settings.zone), ("--project", settings.project)):
            if not value:
                raise UserError(f"--provider gcp: {option} is missing, which Google's cloud needs")
        found["project_id"] = settings.project
    elif settings.project:
        raise UserError("--project: is Google's; leave it out with --provider aws")
    if settings.zone:
        found["availability_zone"] = settings.zone
    if settings.provider == "aws":
        found["cache_stopped_nodes"] = False
    return found


def _machine(settings: Settings, kind: str) -> dict[str, Any]:
    """A machine of this kind, as the cloud's interface takes it."""
    if settings.provider == "aws":
        size = {"VolumeSize": settings.disk_gb, "VolumeType": "gp3"}
        return {
            "InstanceType": kind,
            "ImageId": settings.machine_image,
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": size}],
        }
    made_of = {"diskSizeGb": settings.disk_gb, "sourceImage": settings.machine_image}
    boot = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": made_of}
    return {"machineType": kind, "disks": [boot]}


def _worker(settings: Settings, nodes: Nodes) -> dict[str, Any]:
    machine = _machine(settings, settings.worker_type)
    if settings.provider == "aws":
        if settings.spot:
            machine["InstanceMarketOptions"] = {"MarketType": "spot"}
        return machine
    scheduling: dict[str, str] = {}
    if settings.spot:
        scheduling["provisioningModel"] = "SPOT"
    if nodes.gpus:  # a machine with GPUs cannot be moved to another host
        scheduling["onHostMaintenance"] = "TERMINATE"
    return machine | ({"scheduling": scheduling} if scheduling else {})


def _install(pinned: Pinned, folder: str) -> list[str]:
    venv = f"{folder}/venv"
    return [
        f"test -x {venv}/bin/pip || python3 -m venv {venv}",
        pinned.check_sums(folder),
        pinned.pip_install(folder, pip=f"{venv}/bin/pip"),
    ]


_HEAD = """\
A Ray cluster in a cloud, for runs of manyfaces. Read it, then
  pip install {packages}    # by which `ray up` asks the cloud
  # The token that all nodes get, in ~/.ray/auth_token:
  env -u RAY_AUTH_TOKEN -u RAY_AUTH_TOKEN_PATH ray get-auth-token --generate > /dev/null
  ray up FILE
  ray dashboard FILE                           # in another terminal: forwards port 8265 through SSH
  manyfaces submit CONFIG --address http://127.0.0.1:8265
  ray down FILE                                # the workers below cost money until then
Dependencies are pinned by their versions; the wheel and the list of them by their SHA-256."""
_COMMENTS = {
    "available_node_types": (
        "Training starts with min_workers nodes, on which idle_timeout_minutes has no effect."
    ),
    "auth": (
        "Ray makes a key pair, and opens SSH (22) to all addresses; narrow it by security_group\n"
        "in provider."
    ),
    "file_mounts": "Name on the nodes: name here.",
    "setup_commands": (
        "python3 of the machine's image has to be 3.11 or 3.12. data.path and run.dir have to be\n"
        "where every node sees them: mount a shared file system here."
    ),
    "head_start_ray_commands": "The dashboard takes jobs, and answers on the head itself only.",
}
