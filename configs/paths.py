"""Relative paths of the configuration made absolute: workers may stand in another folder than the
person did."""

from pathlib import Path
from typing import Any, TypeVar

from manyfaces.configs.node import PATH, Node

AnyNode = TypeVar("AnyNode", bound=Node)


def absolute(node: AnyNode) -> AnyNode:
    """The same mapping in which every field that is marked as a `PATH`, at any depth, is absolute.

    URLs stay; and so does what begins with `~`, as each node of a cluster has a home of its own.
    """
    changed = {}
    for name, info in type(node).model_fields.items():
        value = getattr(node, name)
        new = _paths(value) if PATH in info.metadata else _below(value)
        if new is not value:
            changed[name] = new
    return node.model_copy(update=changed) if changed else node


def _below(value: Any) -> Any:
    if isinstance(value, Node):
        return absolute(value)
    if isinstance(value, tuple) and any(isinstance(each, Node) for each in value):
        return tuple(map(_below, value))
    return value


def _paths(value: Any) -> Any:
    """One path, several, or none."""
    if isinstance(value, tuple):
        return tuple(map(_paths, value))
    if not value or "://" in value or value.startswith("~"):
        return value
    return str(Path(value).absolute())
