"""The machines that the workers run on, as each start of theirs records them."""

import socket
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import torch
import torch.distributed as dist

from manyfaces.cluster.world import World

PACKAGES = ("manyfaces", "torch", "ray", "deepspeed", "nvidia-dali-cuda130", "mlflow")


@dataclass(frozen=True)
class Machines:
    """The hosts of all ranks, and what they compute on."""

    hosts: tuple[str, ...]
    """The host of each rank."""
    devices: tuple[str, ...]
    """The device of each rank, by its name."""

    @classmethod
    def of(cls, world: World) -> "Machines":
        """Those of this run. Collective."""
        is_cuda = world.device.type == "cuda"
        name = torch.cuda.get_device_name(world.device) if is_cuda else "CPU"
        gathered: list[tuple[str, str]] = [("", "")] * world.size
        dist.all_gather_object(gathered, (socket.gethostname(), name))
        hosts, devices = zip(*gathered, strict=True)
        return cls(hosts, devices)

    def is_first_of_host(self, rank: int) -> bool:
        """Whether no rank before this one is on its host."""
        return self.hosts.index(self.hosts[rank]) == rank

    def facts(self) -> dict[str, Any]:
        """What the event of a start says of them, and of the versions that rank 0 runs."""
        return {
            "nodes": list(dict.fromkeys(self.hosts)),
            "devices": dict(Counter(self.devices)),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """The versions of Python and of what the training is made of."""
    known = {"python": python_version()}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known
