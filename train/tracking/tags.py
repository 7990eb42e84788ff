"""What tags of MLflow's say of a run and of each of its attempts."""

from collections.abc import Mapping, Sequence
from typing import Any

from manyfaces.train.tracking.attempts import Attempt

_OF_MLFLOW = {
    "user": "mlflow.user",
    "command": "mlflow.source.name",
    "source": "mlflow.source.type",
    "commit": "mlflow.source.git.commit",
    "dirty": "mlflow.source.git.dirty",
}
"""Names that MLflow gives a meaning, for what `origin` says."""


def run_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """The tags of a run: those of its newest attempt, and the number of restarts."""
    if not attempts:
        return {}
    return {**attempt_tags(attempts[-1]), "manyfaces.restarts": str(len(attempts) - 1)}


def attempt_tags(attempt: Attempt) -> dict[str, str]:
    """The tags of an attempt: where it comes from, and on what it runs. What an earlier version did
    not record is left out."""
    start = attempt.start
    origin = _mapping(start.get("origin"))
    tags = {_OF_MLFLOW[key]: _text(origin[key]) for key in _OF_MLFLOW if key in origin}
    named = {
        "command": origin.get("command"),
        # MLflow's pages hide its own tags, and show the commit without what differs from it.
        "commit": origin.get("commit"),
        "dirty": origin.get("dirty"),
        "host": origin.get("host"),
        "world_size": start.get("world_size"),
        "from_step": start.get("step"),
        "nodes": ", ".join(map(str, _list(start.get("nodes")))),
        "devices": ", ".join(
            f"{count} x {name}" for name, count in _mapping(start.get("devices")).items()
        ),
        **{f"version.{key}": each for key, each in _mapping(start.get("versions")).items()},
    }
    return tags | {f"manyfaces.{k}": _text(v) for k, v in named.items() if v not in (None, "")}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:5000]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
