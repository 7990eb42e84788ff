"""The tree in words: what a key may hold, which key was meant, and pydantic's errors as one plain
line each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from manyfaces.configs.reader import Value
from manyfaces.configs.schema import Config, Node, UserError


def _nodes(annotation: Any) -> list[type[Node]]:
    """The mappings of the tree that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return [annotation]
    return [node for part in get_args(annotation) for node in _nodes(part)]


def _kinds(node: type[Node]) -> tuple[str, ...]:
    return get_args(node.model_fields["kind"].annotation) if "kind" in node.model_fields else ()


@cache
def keys() -> dict[str, list[str]]:
    """Every dotted key of the tree, with the kinds of its mapping that have it."""
    found: dict[str, list[str]] = {}

    def walk(node: type[Node], prefix: str) -> None:
        for name, info in node.model_fields.items():
            found.setdefault(prefix + name, []).extend(_kinds(node))
            for inner in (
                _nodes(info.annotation) if get_origin(info.annotation) is not tuple else []
            ):  # dots do not reach into a list
                walk(inner, f"{prefix}{name}.")

    walk(Config, "")
    return found


@cache
def sums() -> frozenset[str]:
    """Dotted keys whose mapping is one of several kinds, each with keys of its own."""

    def walk(node: type[Node], prefix: str) -> Iterator[str]:
        for name, info in node.model_fields.items():
            if info.discriminator:
                yield prefix + name
            for inner in _nodes(info.annotation):
                yield from walk(inner, f"{prefix}{name}.")

    return frozenset(walk(Config, ""))


def _or(words: Sequence[object]) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last


def _range(metadata: Sequence[Any]) -> str:
    bounds = {
        name: getattr(item, name)
        for item in metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(item, name)
    }
    shown = {name: f"{bound:.10g}" for name, bound in bounds.items() if bound is not None}
    if shown.keys() == {"ge", "le"}:
        return f" from {shown['ge']} to {shown['le']}"
    names = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return "".join(
        f" {'and ' if i else ''}{names[name]} {bound}"
        for i, (name, bound) in enumerate(shown.items())
    )


def allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value must be, in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [
            item
            for data in args[1:]
            for item in (data.metadata if isinstance(data, FieldInfo) else [data])
        ]
        return allowed(args[0], inner)
    if origin is Literal:
        return _or(args)
    if origin in (Union, UnionType):
        kinds = [kind for node in _nodes(annotation) for kind in _kinds(node)]
        return (
            f"a mapping with kind: {_or(kinds)}"
            if kinds
            else ", or ".join(allowed(arg) for arg in args)
        )
    if origin is tuple:
        return (
            f"a list, each {allowed(args[0])}"
            if args[-1] is Ellipsis
            else f"a list of {len(args)}, each {allowed(args[0])}"
        )
    if origin is dict:
        return f"a mapping from {allowed(args[0])} to {allowed(args[1])}"
    if nodes := _nodes(annotation):
        return f"a mapping with the keys {', '.join(nodes[0].model_fields)}"
    if annotation is str:
        patterns = [item.pattern for item in metadata if getattr(item, "pattern", None)]
        return f"text like {patterns[0]}" if patterns else "text"
    names = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
    return names.get(annotation, str(annotation)) + _range(metadata)


@dataclass(frozen=True)
class Place:
    """Where an error of pydantic's lies: in the tree, and in what a person wrote."""

    path: tuple[str | int, ...]
    value: Value
    """The value there; where there is none, the nearest around it."""
    owner: type[Node]
    """Whose field it is, or would be."""
    field: FieldInfo | None

    def __str__(self) -> str:
        return "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path
        ).lstrip(".")


def locate(loc: tuple[str | int, ...], root: Value) -> Place:
    """The place of pydantic's `loc`, in which the tags of unions stand between the keys."""
    path: tuple[str | int, ...] = ()
    node: type[Node] = Config
    owner, info, value = node, None, root
    parts = list(loc)
    while parts:
        part = parts.pop(0)
        path, value = (*path, part), value.child(part) or value
        if isinstance(part, int):
            continue
        owner, info = node, node.model_fields.get(part)
        nodes = _nodes(info.annotation) if info else []
        if nodes:
            alone = info is not None and info.annotation in (nodes[0], nodes[0] | None)
            tag = parts.pop(0) if parts and isinstance(parts[0], str) and not alone else None
            node = next((each for each in nodes if tag in _kinds(each)), nodes[0])
    return Place(path, value, owner, info)


def _unknown(place: Place) -> str:
    """What was meant by a key that does not exist, and what exists."""
    name, path, mine = str(place.path[-1]), str(place), list(place.owner.model_fields)
    kinds = _kinds(place.owner)
    owner = (
        f"kind {kinds[0]}"
        if len(kinds) == 1
        else ".".join(map(str, place.path[:-1])) or "the top level"
    )
    others = {key: key.rsplit(".")[-1] for key in keys() if key != path}
    if "." in name:
        hint = "; dots are for override words, in a file nest one key in the other"
    elif keys().get(path):
        hint = f"; it belongs to kind {_or(keys()[path])}"
    elif near := get_close_matches(name, mine, 1):
        hint = f"; did you mean {near[0]}?"
    else:
        near = [key for key, last in others.items() if last == name]
        near = near or [
            key
            for key, last in others.items()
            if last in get_close_matches(name, others.values(), 1, 0.8)
        ]
        hint = f"; did you mean {_or(near[:3])}?" if near else ""
    return f"unknown key{hint}; {owner} has {', '.join(mine)}"


def _shown(value: Value) -> str:
    if isinstance(value.data, dict | list):
        return "a mapping" if isinstance(value.data, dict) else "a list"
    if value.data is None:
        return "nothing"
    text = repr(value.data) if isinstance(value.data, str) else str(value.text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(error: ErrorDetails, place: Place) -> str:
    kind, value, path = error["type"], place.value, str(place)
    if kind == "extra_forbidden":
        return f"{value.where}: {path}: {_unknown(place)}"
    if kind == "value_error":
        return f"{value.where}: {path or 'the tree'}: {error['ctx']['error']}"
    assert place.field is not None
    words = allowed(place.field.annotation, place.field.metadata)
    if kind in ("missing", "union_tag_not_found"):
        return (
            f"{value.where}: {path}: {'is missing' if kind == 'missing' else 'kind is missing'}; "
            f"must be {words}"
        )
    choices = [part for part in get_args(place.field.annotation) if isinstance(part, str)]
    if kind == "union_tag_invalid":
        path, value = f"{path}.kind", value.child("kind") or value
        choices = [each for node in _nodes(place.field.annotation) for each in _kinds(node)]
        words = _or(choices)
    near = get_close_matches(value.data, choices, 1) if isinstance(value.data, str) else []
    about = (
        f" ({place.field.description.split('. ')[0].rstrip('.')})"
        if place.field.description and kind != "union_tag_invalid"
        else ""
    )
    return (
        f"{value.where}: {path}: must be {words}, not "
        f"{_shown(value)}{f'; did you mean {near[0]}?' if near else ''}{about}"
    )


def lines(error: ValidationError, root: Value) -> list[str]:
    """One plain line for each thing that is wrong."""
    found: dict[tuple[str | int, ...], list[tuple[ErrorDetails, Place]]] = {}
    for detail in error.errors(include_url=False):
        place = locate(detail["loc"], root)
        found.setdefault(place.path, []).append((detail, place))
    told = []
    for path, details in found.items():
        # A union complains once for each of its members: the member that was meant knows best, and
        # it complains deeper or in its own words.
        if not any(other[: len(path)] == path for other in found if other != path):
            told.append(
                _line(
                    *next(
                        (detail for detail in details if detail[0]["type"] == "value_error"),
                        details[0],
                    )
                )
            )
    return told


def describe(path: str) -> list[str]:
    """The keys at and below a dotted path with what each may hold, its default and its sentence; of
    a mapping of several kinds, when to use each. Raises `UserError` for a path that does not
    exist."""
    node: type[Node] = Config
    for part in filter(None, path.split(".")):
        if part not in node.model_fields or not (
            inner := _nodes(node.model_fields[part].annotation)
        ):
            near = get_close_matches(path, [key for key in keys() if _mapping(key)], 1)
            raise UserError(
                f"{path}: no mapping of the "
                f"configuration{f'; did you mean {near[0]}?' if near else ''}"
            )
        node = inner[0]
    return list(_described(node, ""))


def _mapping(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in keys())


def _described(node: type[Node], indent: str) -> Iterator[str]:
    for name, info in node.model_fields.items():
        if name == "kind":
            continue
        inner = _nodes(info.annotation) if get_origin(info.annotation) is not tuple else []
        about = " ".join((info.description or "").split())
        if not inner:
            default = (
                "" if info.is_required() else f" [{info.get_default(call_default_factory=True)}]"
            )
            line = f"{indent}{name}{default}: {allowed(info.annotation, info.metadata)}"
            yield f"{line}. {about}" if about else line
            continue
        yield f"{indent}{name}:{f' {about}' if about else ''}"
        for each in inner:
            if kinds := _kinds(each):
                yield f"{indent}  kind: {kinds[0]}{f' - {_sentence(each)}' if each.__doc__ else ''}"
            yield from _described(each, indent + ("    " if _kinds(each) else "  "))


def _sentence(node: type[Node]) -> str:
    return " ".join((node.__doc__ or "").split())
