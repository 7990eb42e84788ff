"""A recipe and `path.to.key=value` words to the typed tree, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from manyfaces.configs.explain import (
    default_kinds,
    default_lists,
    kind_keys,
    lines,
    locate,
)
from manyfaces.configs.migrate import lift, lift_layer
from manyfaces.configs.reader import Dumper, Reader, find
from manyfaces.configs.schema import Config, UserError
from manyfaces.configs.value import Value, merge, merge_by_word


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Config:
    """Load a YAML recipe on top of its `base:`, and override words on top of both.

    `path` may be the bare name of a shipped recipe. `tell` gets a line about each old spelling.
    Raises `UserError` with one line for each thing that is wrong.
    """
    reader = Reader(kind_keys())
    tree = reader.file(find(path, Path()))
    words = reader.overrides(overrides)
    for notice in reader.notices:
        tell(_one_line(notice))
    config = None
    if tree is not None:
        config = _typed(merge(tree, words, kind_keys()), reader.problems, tell)
    if config is None or reader.problems:
        raise UserError("\n".join(map(_one_line, reader.problems)))
    return config


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """The same configuration with other values for the keys of override words.

    Raises `UserError` with one line for each thing that is wrong.
    """
    reader = Reader(kind_keys())
    words = reader.overrides(overrides)
    tree = Value.of(config.model_dump(mode="json"), "the run's configuration")
    result = _typed(merge(tree, words, kind_keys()), reader.problems, lambda line: None)
    if result is None or reader.problems:
        raise UserError("\n".join(map(_one_line, reader.problems)))
    return result


def load_stored(tree: Mapping[str, Any], where: str) -> Config:
    """Load the tree that a run or a checkpoint holds, written by this version or by one before it.

    Raises `UserError` with one line for what this version does not know.
    """
    lifted = lift_layer(Value.of(dict(tree), where))
    problems = lifted.problems
    config = _typed(lifted.tree, problems, lambda line: None)
    if config is None or problems:
        raise UserError(_one_line("; ".join(problems)))
    return config


def dump(config: Config) -> str:
    """The whole tree as YAML that loads back to an equal one, with the credentials that it has:
    what is kept or shown is the text of the `redacted` tree."""
    tree = config.model_dump(mode="json")
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _typed(root: Value, problems: list[str], tell: Callable[[str], None]) -> Config | None:
    lifted = lift(_with_lists(root))
    problems += lifted.problems
    for notice in lifted.notices:
        tell(_one_line(notice))
    return _validate(_with_default_kinds(lifted.tree), problems)


def _with_lists(tree: Value) -> Value:
    """A mapping in place of a list of kinds is a change of the default list."""
    for path in kind_keys().lists:
        keys = path.split(".")
        value = tree.get(*keys)
        if value is not None and isinstance(value.data, dict):
            base = replace(Value.of(default_lists()[path], "the default"), where=value.where)
            tree = tree.put(merge_by_word(base, value, kind_keys(), path), *keys)
    return tree


def _with_default_kinds(tree: Value) -> Value:
    """The same tree, in which a mapping that does not say its kind is of the default kind."""
    for path, word in default_kinds().items():
        keys = path.split(".")
        value = tree.get(*keys)
        if value is not None and isinstance(value.data, dict) and "kind" not in value.data:
            tree = tree.put(Value(word, value.where, word), *keys, "kind")
    return tree


def _validate(root: Value, problems: list[str]) -> Config | None:
    tree = root.plain()
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        details = [detail for detail in error.errors() if detail["type"] == "string_type"]
        places = [locate(detail["loc"], root) for detail in details]
    # `run.name=7` means the text, though YAML reads a number.
    for place in places:
        if place.value.text is not None and place.value.data is not None:
            _put(tree, place.path, place.value.text)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems += lines(error, root)
        return None


def _put(tree: Any, path: tuple[str | int, ...], text: str) -> None:
    *around, last = path
    for part in around:
        tree = tree[part]
    tree[last] = text
