"""Fields that hold paths, wherever they are in the tree: relative ones are made absolute, as
workers may stand in another folder than the person did."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from manyfaces.configs.errors import UserError
from manyfaces.configs.node import NODE_PATH, PATH, Holds, Node

AnyNode = TypeVar("AnyNode", bound=Node)


def absolute(node: AnyNode) -> AnyNode:
    """The same mapping in which every field that is marked as a `PATH` or a `NODE_PATH`, at any
    depth, is absolute; URLs stay. Raises `UserError` for the home of nobody."""
    return mapped(mapped(node, PATH, _from_home), NODE_PATH, _absolute)


def _from_home(path: str) -> str:
    expanded = os.path.expanduser(path)  # noqa: PTH111 - a URL is no Path
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no such home; write the path out")
    return _absolute(expanded)


def _absolute(path: str) -> str:
    is_elsewhere = not path or "://" in path or path.startswith("~")
    return path if is_elsewhere else str(Path(path).absolute())


def mapped(node: AnyNode, mark: Holds, change: Callable[[str], str]) -> AnyNode:
    """The same mapping with every text changed that a field with this mark holds, at any depth."""
    changed = {}
    for name, info in type(node).model_fields.items():
        value = getattr(node, name)
        new = _texts(value, change) if mark in info.metadata else _below(value, mark, change)
        if new is not value:
            changed[name] = new
    return node.model_copy(update=changed) if changed else node


def _below(value: Any, mark: Holds, change: Callable[[str], str]) -> Any:
    if isinstance(value, Node):
        return mapped(value, mark, change)
    if isinstance(value, tuple) and any(isinstance(each, Node) for each in value):
        return tuple(_below(each, mark, change) for each in value)
    return value


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    """One text, several, or none."""
    if isinstance(value, tuple):
        return tuple(_texts(each, change) for each in value)
    return value if value is None else change(value)
