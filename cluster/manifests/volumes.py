"""Persistent volume claims that a run's folders stand on, in each pod at the same place."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.node import NODE_PATH, PATH
from manyfaces.configs.paths import absolute, mapped
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of

CACHE = "/cache"
"""Where the shards of a dataset at a URL are kept, where the configuration names the home of a
person: a pod's home is not what a volume can be mounted at by name."""


@dataclass(frozen=True)
class Claim:
    """A persistent volume claim, and where it is mounted in every pod."""

    name: str
    mount: str

    @classmethod
    def of(cls, word: str) -> "Claim":
        """What `CLAIM:/FOLDER` says. Raises `UserError` for anything else."""
        name, _, mount = word.partition(":")
        if not name or not mount.startswith("/") or mount == "/":
            raise UserError(
                f"--claim {word}: is not CLAIM:/FOLDER, the name of a persistent volume claim and "
                "where it is mounted, such as datasets:/shared"
            )
        return cls(name, str(PurePosixPath(mount)))

    def holds(self, path: str) -> bool:
        """Whether the path is on it."""
        return PurePosixPath(path).is_relative_to(self.mount)


@dataclass(frozen=True)
class Placed:
    """A configuration whose paths mean the same in every pod, and the volumes for them."""

    config: Config
    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]


def placed(config: Config, claims: tuple[Claim, ...]) -> Placed:
    """The configuration for pods that mount these claims; the cache of a dataset at a URL is a
    volume of each node's own, where no claim holds it. Raises `UserError` for a path that is on no
    claim."""
    config = absolute(config)
    _refuse_lost(config, claims)
    volumes = [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim.name}}
        for number, claim in enumerate(claims)
    ]
    mounts = [
        {"name": f"claim-{number}", "mountPath": claim.mount} for number, claim in enumerate(claims)
    ]
    if any(url_of(path) is not None for path in config.data.paths):
        if config.data.cache_dir.startswith("~"):
            data = config.data.model_copy(update={"cache_dir": CACHE})
            config = config.model_copy(update={"data": data})
        if not any(claim.holds(config.data.cache_dir) for claim in claims):
            size = f"{config.data.cache_gb:.0f}G"
            volumes.append({"name": "cache", "emptyDir": {"sizeLimit": size}})
            mounts.append({"name": "cache", "mountPath": config.data.cache_dir})
    return Placed(config, volumes, mounts)


def _refuse_lost(config: Config, claims: tuple[Claim, ...]) -> None:
    needed: list[str] = []

    def need(path: str) -> str:
        needed.append(path)
        return path

    mapped(config, PATH, need)
    mapped(config.model, NODE_PATH, need)
    if url_of(config.run.dir) is not None:
        needed.append(config.run.work_dir)
    for path in filter(None, needed):
        if url_of(path) is None and not any(claim.holds(path) for claim in claims):
            key = next((key for key, value in _values(config) if path in value), "a path")
            raise UserError(
                f"{key} {path} is on no volume that every pod sees; give --claim CLAIM:/FOLDER for "
                f"a folder that holds it, or set {key} to a path below one"
            )


def _values(config: Config) -> list[tuple[str, tuple[object, ...]]]:
    flat = flatten(config.model_dump(mode="json"))
    return [
        (key, tuple(value) if isinstance(value, list) else (value,)) for key, value in flat.items()
    ]
