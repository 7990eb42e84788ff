"""The tree as dotted keys: what makes two runs the same experiment, and what decides a checkpoint's
tensors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manyfaces.configs.files import file_sha256
from manyfaces.configs.node import FILE, RESULTS, Decides, Node
from manyfaces.configs.redact import is_redacted, redacted
from manyfaces.configs.schema import Config

OBJECTIVE = "objective"
"""Key under which `tensors` tells the names of the objective's state."""
SHA256 = "_sha256"
"""End of the keys under which `identity` tells the bytes of a custom class's file."""


def identity(config: Config) -> dict[str, Any]:
    """What decides the results of a run, by dotted key: a run name that exists with another value
    is refused. Files are told by their SHA-256, and URLs without their credentials: with a new
    password it is the same experiment."""
    return {
        key: _plain(value)
        for key, _, value, decides in _fields(config)
        if decides.what != "nothing"
    }


def tensors(config: Config) -> dict[str, Any]:
    """What decides which tensors a checkpoint has, by dotted key: no resume can change it."""
    kept: dict[str, Any] = {OBJECTIVE: ", ".join(config.objective.state_names()) or "no state"}
    for key, owner, value, decides in _fields(config):
        if decides.what == "tensors":
            kept[key] = _plain(value if decides.by is None else decides.by(owner))
    return kept


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The keys that differ, sorted; first the objective's state, which explains other keys.

    The digest of a file that only one side has is no difference of its own: where the custom class
    decides anything, its other keys differ, and a custom protocol may be added or left out.
    """
    keys = sorted(mine.keys() | theirs, key=lambda key: (key != OBJECTIVE, key))
    return [
        key
        for key in keys
        if mine.get(key) != theirs.get(key)
        and not (key.endswith(SHA256) and (key in mine) != (key in theirs))
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level of dotted keys; those of a list as `key.NUMBER.field`, since
    MLflow takes no brackets in a name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value and isinstance(value, list | tuple) and all(isinstance(v, dict) for v in value):
            for number, each in enumerate(value):
                flat |= flatten(each, f"{prefix}{key}.{number}.")
        else:
            flat[prefix + key] = value
    return flat


def keys_with_credentials(config: Config) -> list[str]:
    """The dotted keys whose values are URLs with credentials in them."""
    values = flatten(config.model_dump())
    return [key for key, value in values.items() if redacted(value) != value]


def keys_without_credentials(config: Config) -> list[str]:
    """The dotted keys whose values are URLs in which credentials were hidden."""
    return [k for k, value in flatten(config.model_dump()).items() if is_redacted(str(value))]


_Field = tuple[str, Node, Any, Decides]


def _fields(config: Config) -> Iterator[_Field]:
    """Key, mapping, value and what it decides, of every field that is in use."""
    for section in type(config).model_fields:
        if section != "head" or config.has_head:
            yield from _below(section, getattr(config, section))


def _below(key: str, node: Node) -> Iterator[_Field]:
    for name, info in type(node).model_fields.items():
        said = [each for each in info.metadata if isinstance(each, Decides)]
        decides = said[0] if said else type(node).decides
        value = getattr(node, name)
        yield from _value(f"{key}.{name}", node, value, decides)
        if FILE in info.metadata:
            file, where = Path(value), key
            digest = file_sha256(file) if file.is_file() else "no such file"
            if type(node).decides.what == "nothing":
                # Its place in a list decides nothing either, and may be another when a run goes on.
                where = f"{key.rpartition('[')[0]}[{file.name}]"
            yield f"{where}.{name}{SHA256}", node, digest, RESULTS


def _value(key: str, owner: Node, value: Any, decides: Decides) -> Iterator[_Field]:
    if isinstance(value, Node):
        yield from _below(key, value)
    elif isinstance(value, tuple) and all(isinstance(each, Node) for each in value):
        for number, each in enumerate(value):
            yield from _below(f"{key}[{number}]", each)
    else:
        yield key, owner, value, decides


def _plain(value: Any) -> Any:
    """The value as JSON has it, without credentials: tuples are lists."""
    return list(map(_plain, value)) if isinstance(value, tuple) else redacted(value)
