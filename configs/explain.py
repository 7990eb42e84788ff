"""What to tell people about the tree: what a key may hold, which key was meant, and each of
pydantic's errors as one plain line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from manyfaces.configs.kinds import Kind, families
from manyfaces.configs.schema import Config, Node, UserError
from manyfaces.configs.value import KindKeys, Value

_NEAR = 0.8
"""How alike two words are of which one is a slip of the finger for the other, from 0 to 1."""


def _nodes(annotation: Any) -> list[type[Node]]:
    """The mappings of the tree that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        return list(annotation.kinds())
    if isinstance(annotation, type) and issubclass(annotation, Node):
        return [annotation]
    return [node for part in get_args(annotation) for node in _nodes(part)]


def _words(node: type[Node]) -> tuple[str, ...]:
    """The `kind` words of a mapping; none for one that is of no kind."""
    return get_args(node.model_fields["kind"].annotation) if "kind" in node.model_fields else ()


@cache
def keys() -> dict[str, list[str]]:
    """Every dotted key of the tree that dots reach, with the kinds of its mapping that have it."""
    found: dict[str, list[str]] = {}
    for prefix, node in _mappings(Config, ""):
        for name in node.model_fields:
            found.setdefault(prefix + name, []).extend(_words(node))
    return found


def _mappings(node: type[Node], prefix: str) -> Iterator[tuple[str, type[Node]]]:
    """Every mapping that dots reach, with what stands before its keys."""
    yield prefix, node
    for name, info in node.model_fields.items():
        if get_origin(info.annotation) is not tuple:
            for inner in _nodes(info.annotation):
                yield from _mappings(inner, f"{prefix}{name}.")
        else:
            for kind in _listed_kinds(node, info):
                yield from _mappings(kind, f"{prefix}{name}.{_words(kind)[0]}.")


def _listed_kinds(node: type[Node], info: FieldInfo) -> list[type[Node]]:
    """The kinds that a list of kinds may hold; none for another field. The lists of a kind itself
    are left out, which may hold it again."""
    is_list = get_origin(info.annotation) is tuple and families(info.annotation)
    return _nodes(info.annotation) if is_list and not issubclass(node, Kind) else []


def _kind_fields() -> Iterator[tuple[str, FieldInfo]]:
    """The fields of the tree that hold a kind, or a list of kinds."""
    for prefix, node in _mappings(Config, ""):
        for name, info in node.model_fields.items():
            if info.discriminator or families(info.annotation):
                yield prefix + name, info


@cache
def kind_keys() -> KindKeys:
    """Where in the tree a `kind` word chooses."""
    fields = dict(_kind_fields())
    lists = {
        path: families(info.annotation)[0].usual_order
        for path, info in fields.items()
        if get_origin(info.annotation) is tuple
    }
    return KindKeys(frozenset(fields.keys() - lists), lists)


@cache
def default_kinds() -> dict[str, str]:
    """The default kind's word, by dotted key, where the default is a kind."""
    return {
        path: _words(type(info.default))[0]
        for path, info in _kind_fields()
        if isinstance(info.default, Node)
    }


@cache
def default_lists() -> dict[str, list[Any]]:
    """The default of each list of kinds as plain mappings, by dotted key; empty where there is
    none."""
    fields = dict(_kind_fields())
    defaults = {path: fields[path].default for path in kind_keys().lists}
    return {
        path: [kind.model_dump(mode="json") for kind in default]
        if isinstance(default, tuple)
        else []
        for path, default in defaults.items()
    }


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
    """What a value must be, as the end of "must be ..."."""
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
        kinds = [kind for node in _nodes(annotation) for kind in _words(node)]
        return (
            f"a mapping with kind: {_or(kinds)}"
            if kinds
            else ", or ".join(allowed(arg) for arg in args)
        )
    if origin is list or (origin is tuple and args[-1] is Ellipsis):
        fewest = [item.min_length for item in metadata if getattr(item, "min_length", None)]
        return f"a list{f' of at least {fewest[0]}' if fewest else ''}, each {allowed(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {allowed(args[0])}"
    if origin is dict:
        return f"a mapping from {allowed(args[0])} to {allowed(args[1])}"
    if families(annotation):
        words = [word for node in _nodes(annotation) for word in _words(node)]
        return f"a mapping with kind: {_or(words)}"
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
    """Keys and places in lists, from the top."""
    value: Value
    """The value there; where there is none, the nearest around it."""
    owner: type[Node]
    """The mapping whose field it is, or would be."""
    field: FieldInfo | None
    """The field; none for a key that does not exist."""

    def __str__(self) -> str:
        return "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path
        ).lstrip(".")


def locate(loc: tuple[str | int, ...], root: Value) -> Place:
    """The place of pydantic's `loc`, in which the tags of unions stand between the keys."""
    path: tuple[str | int, ...] = ()
    node: type[Node] = Config
    owner, info, value = node, None, root
    nodes: list[type[Node]] = []
    parts = list(loc)
    while parts:
        part = parts.pop(0)
        below = value.child(part)
        if info is not None and not nodes and isinstance(part, str):
            # Inside of a field without keys of its own: a key of a free mapping, or a tag.
            if below is not None:
                path, value = (*path, part), below
            continue
        path, value = (*path, part), below or value
        if isinstance(part, str):
            owner, info = node, node.model_fields.get(part)
            nodes = _nodes(info.annotation) if info else []
        if nodes:
            words = [word for each in nodes for word in _words(each)]
            is_union = info is not None and not words and _is_union(info.annotation)
            tag = parts.pop(0) if parts and (is_union or parts[0] in words) else None
            node = next((each for each in nodes if tag in _words(each)), nodes[0])
    return Place(path, value, owner, info)


def _is_union(annotation: Any) -> bool:
    """Whether it allows several types besides null."""
    members = [part for part in get_args(annotation) if part is not NoneType]
    return get_origin(annotation) in (Union, UnionType) and len(members) > 1


def _unknown(place: Place) -> str:
    """What was meant by a key that does not exist, and what exists."""
    name, path = str(place.path[-1]), str(place)
    mine = sorted(place.owner.model_fields, key=lambda field: field != "kind")
    kinds = _words(place.owner)
    owner = (
        f"kind {kinds[0]}"
        if len(kinds) == 1
        else ".".join(map(str, place.path[:-1])) or "the top level"
    )
    others = {key: key.rsplit(".")[-1] for key in keys() if key != path}
    elsewhere = get_close_matches(name, others.values(), 1, _NEAR)
    if "." in name:
        hint = "; dots are for override words, in a file nest one key in the other"
    elif keys().get(path):
        hint = f"; it belongs to kind {_or(keys()[path])}"
    # A key of another mapping or kind that is much nearer was meant.
    elif near := get_close_matches(name, mine, 1, _NEAR if elsewhere else 0.6):
        hint = f"; did you mean {near[0]}?"
    else:
        near = [key for key, last in others.items() if last == name]
        near = near or [key for key, last in others.items() if last in elsewhere]
        hint = f"; did you mean {_or(near[:3])}?" if near else ""
    return f"unknown key{hint}; {owner} has {', '.join(mine)}"


def _shown(value: Value) -> str:
    if isinstance(value.data, dict):
        return "a mapping"
    if isinstance(value.data, list):
        return f"a list of {len(value.data)}"
    if value.data is None:
        return "nothing"
    text = repr(value.data) if isinstance(value.data, str) else str(value.text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(error: ErrorDetails, place: Place) -> str:
    kind, value = error["type"], place.value
    path = value.written or str(place)
    if kind == "extra_forbidden":
        return f"{value.where}: {path}: {_unknown(place)}"
    if kind == "value_error":
        return f"{value.where}: {path or 'the tree'}: {error['ctx']['error']}"
    if kind == "kind_twice":
        return f"{value.where}: {path}: {error['msg']}"
    assert place.field is not None
    annotation, metadata = place.field.annotation, place.field.metadata
    if isinstance(place.path[-1], int) and families(annotation):
        annotation, metadata = get_args(annotation)[0], []
    words = allowed(annotation, metadata)
    if kind in ("missing", "union_tag_not_found"):
        return (
            f"{value.where}: {path}: {'is missing' if kind == 'missing' else 'kind is missing'}; "
            f"must be {words}"
        )
    choices = [part for part in get_args(annotation) if isinstance(part, str)]
    if kind == "union_tag_invalid":
        path, value = f"{path}.kind", value.child("kind") or value
        choices = [each for node in _nodes(annotation) for each in _words(node)]
        words = _or(choices)
    near = get_close_matches(value.data, choices, 1) if isinstance(value.data, str) else []
    about = ""
    if place.field.description and kind != "union_tag_invalid":
        sentence = " ".join(place.field.description.split()).split(". ")[0]
        about = f" ({sentence.rstrip('.')})"
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
    nodes: list[type[Node]] = [Config]
    for part in filter(None, path.split(".")):
        below = [node for node in nodes if part in _words(node)]
        for node in [] if below else nodes:
            info = node.model_fields.get(part)
            below += _nodes(info.annotation) if info else []
        if not below:
            near = get_close_matches(path, [key for key in keys() if _is_mapping(key)], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: no mapping of the configuration{hint}")
        nodes = list(dict.fromkeys(below))
    return [line for node in nodes for line in _described(node, "", ())]


def _is_mapping(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in keys())


def _described(node: type[Node], indent: str, around: tuple[type[Node], ...]) -> Iterator[str]:
    """The lines about a mapping. Families that are in `around` are not written out again: a sum of
    objectives may hold sums."""
    around = (*around, _family(node))
    if words := _words(node):
        sentence = " ".join((node.__doc__ or "").split())
        yield f"{indent}kind: {_or(words)}{f' - {sentence}' if sentence else ''}"
        indent += "  "
    for name, info in node.model_fields.items():
        if name == "kind":
            continue
        yield _field_line(name, info, indent)
        for inner in _nodes(info.annotation):
            if _family(inner) not in around:
                yield from _described(inner, f"{indent}  ", around)


def _family(node: type[Node]) -> type[Node]:
    """The family of a kind; of another mapping, itself."""
    families_of = (each for each in node.__mro__ if issubclass(each, Kind) and each.word() is None)
    return next(families_of, node)


def _field_line(name: str, info: FieldInfo, indent: str) -> str:
    about = " ".join((info.description or "").split())
    is_mapping = bool(families(info.annotation)) or info.discriminator is not None
    is_mapping |= isinstance(info.annotation, type) and issubclass(info.annotation, Node)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if is_mapping and get_origin(info.annotation) is not tuple:
        kind = _words(type(default)) if isinstance(default, Node) else ()
        shown = f" [{kind[0]}]" if kind else ""
        return f"{indent}{name}{shown}:{f' {about}' if about else ''}"
    if isinstance(default, tuple) and any(isinstance(each, Kind) for each in default):
        default = ", ".join(str(each.word()) for each in default)
    shown = "" if info.is_required() else f" [{default}]"
    line = f"{indent}{name}{shown}: {allowed(info.annotation, info.metadata)}"
    return f"{line}. {about}" if about else line
