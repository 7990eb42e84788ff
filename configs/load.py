"""A recipe and `path.to.key=value` words to the typed tree, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from manyfaces.configs.explain import lines, locate, sums
from manyfaces.configs.reader import Reader, Value, find, merge
from manyfaces.configs.schema import Config, UserError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The tree of a YAML recipe (with its `base:` below it) and override words above it.

    `path` may be the bare name of a shipped recipe. Raises `UserError` with one line for each thing
    that is wrong.
    """
    reader = Reader(sums())
    tree = reader.file(find(path, Path()))
    words = reader.overrides(overrides)
    config = None
    if tree is not None:
        config = _validate(merge(tree, words, sums()), reader.problems)
    if config is None or reader.problems:
        raise UserError("\n".join(map(_one_line, reader.problems)))
    return config


def dump(config: Config) -> str:
    """The whole tree as YAML that loads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _validate(root: Value, problems: list[str]) -> Config | None:
    tree = root.plain()
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        places = [
            locate(detail["loc"], root)
            for detail in error.errors()
            if detail["type"] == "string_type"
        ]
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
