"""What a person wrote: YAML files with `base:` and `path.to.key=value` words, read into values that
know where they stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs.schema import UserError

HERE = Path(__file__).parent
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "map", "seq")
}


@dataclass(frozen=True, slots=True)
class Value:
    """A scalar, a `dict[str, Value]` or a `list[Value]`, and where a person wrote it."""

    data: Any
    where: str
    """`file:line` or `override 'word'`."""
    text: str | None = None
    """A scalar as it was written."""

    def child(self, key: str | int) -> "Value | None":
        if isinstance(self.data, dict):
            return self.data.get(key)
        return self.data[key] if isinstance(self.data, list) and isinstance(key, int) else None

    def plain(self) -> Any:
        """Without the places."""
        if isinstance(self.data, dict):
            return {key: value.plain() for key, value in self.data.items()}
        return [value.plain() for value in self.data] if isinstance(self.data, list) else self.data


def merge(base: Value, over: Value, sums: frozenset[str], path: str = "") -> Value:
    """`over` on top of `base`, mapping by mapping. In the `sums` (dotted paths) a mapping of
    another `kind` replaces the base's whole."""
    if not (isinstance(base.data, dict) and isinstance(over.data, dict)):
        return over
    kinds = [tree.data["kind"].data for tree in (base, over) if "kind" in tree.data]
    if path in sums and len(kinds) == 2 and kinds[0] != kinds[1]:
        return over
    merged = dict(base.data)
    for key, value in over.data.items():
        merged[key] = (
            merge(base.data[key], value, sums, f"{path}.{key}".lstrip("."))
            if key in base.data
            else value
        )
    return Value(merged, base.where)


def find(name: str | Path, folder: Path) -> Path:
    """The recipe of this name (`.yaml` may be left out) in the folder, else the shipped one.

    Raises `UserError` saying what stands there instead.
    """
    name = Path(name).expanduser()
    asked, shipped = folder / name, HERE / f"{name.stem}.yaml"
    try:
        for path in (asked, Path(f"{asked}.yaml")):
            if path.is_file():
                return path
        # Only a name that can mean ours: a mistyped path of one's own must not load another file.
        if (
            name.suffix in ("", ".yaml")
            and name.parent in (Path(), Path("configs"))
            and shipped.is_file()
        ):
            return shipped
        is_directory = asked.is_dir()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    recipes = sorted(path.stem for path in HERE.glob("*.yaml"))
    near = get_close_matches(name.stem, recipes, 1)
    what = "is a directory, not a recipe" if is_directory else "no such file"
    raise UserError(
        f"{name}: {what}{f'; did you mean {near[0]}?' if near else ''}; shipped recipes are "
        f"{', '.join(recipes)}"
    )


@dataclass
class Reader:
    """Reads on after an error: `problems` has one line for each, so that a person sees all of them
    at once."""

    sums: frozenset[str]
    problems: list[str] = field(default_factory=list)

    def file(self, path: Path, chain: tuple[Path, ...] = ()) -> Value | None:
        """The file on top of its `base`; none if it cannot be read."""
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            self.problems.append(f"{path}: {error.strerror}")
            return None
        except UnicodeDecodeError as error:
            self.problems.append(f"{path}: not UTF-8 text (byte {error.start})")
            return None
        num_problems = len(self.problems)
        tree = self.parse(text, lambda line: f"{path}:{line + 1}")
        if len(self.problems) > num_problems and tree is None:
            return None
        if tree is None or not isinstance(tree.data, dict):
            what = (
                "is empty"
                if tree is None
                else "the top level must be a mapping of keys, "
                f"not {'text' if tree.text else 'a list'}"
            )
            self.problems.append(
                f"{path}: {what}; a recipe needs at least `model: {{kind: iresnet}}`"
            )
            return None
        keys = dict(tree.data)
        base = (
            self._base(keys.pop("base"), path, (*chain, path.resolve())) if "base" in keys else None
        )
        merged = (
            merge(base, Value(keys, tree.where), self.sums) if base else Value(keys, tree.where)
        )
        return Value(merged.data, tree.where)

    def _base(self, name: Value, path: Path, chain: tuple[Path, ...]) -> Value | None:
        if not isinstance(name.data, str):
            self.problems.append(
                f"{name.where}: base: must be one file name, relative to this file"
            )
            return None
        try:
            base = find(name.data, path.parent)
        except UserError as error:
            self.problems.append(f"{name.where}: base: {error}")
            return None
        if base.resolve() in chain:
            circle = " -> ".join(
                link.name for link in (*chain[chain.index(base.resolve()) :], base)
            )
            self.problems.append(f"{name.where}: base: goes in a circle ({circle})")
            return None
        return self.file(base, chain)

    def overrides(self, words: Sequence[str]) -> Value:
        """One tree of all `path.to.key=value` words; of two for the same key the later holds."""
        tree = Value({}, "overrides")
        for word in words:
            where = f"override {word!r}"
            key, equals, text = word.partition("=")
            path = key.strip().split(".")
            if not equals or not all(path):
                self.problems.append(f"{where}: is not of the form path.to.key=value")
                continue
            num_problems = len(self.problems)
            value = self.parse(text, lambda _, where=where: where, key.strip()) or Value(  # type: ignore[misc]
                None, where, text
            )
            if len(self.problems) > num_problems:
                continue
            for part in reversed(path):
                value = Value({part: value}, where)
            tree = merge(tree, value, self.sums)
        return tree

    def parse(self, text: str, where: Callable[[int], str], path: str = "") -> Value | None:
        """The one YAML document of the text, which stands at `path` of the tree; none for nothing,
        and for what is no YAML."""
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            return None if node is None else self._value(node, loader, where, path)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = (
                "a tab where YAML wants spaces"
                if "'\\t'" in str(error.problem)
                else f"not YAML: {error.problem}"
            )
            context = f" ({error.context})" if error.context and "tab" not in what else ""
            self.problems.append(f"{where(mark.line if mark else 0)}: {what}{context}")
        except yaml.YAMLError as error:
            self.problems.append(f"{where(0)}: not text: {getattr(error, 'reason', error)}")
        except RecursionError:
            self.problems.append(f"{where(0)}: nests too deeply, or holds itself")
        return None

    def _value(
        self, node: yaml.Node, loader: yaml.SafeLoader, where: Callable[[int], str], path: str
    ) -> Value:
        place = where(node.start_mark.line)
        if isinstance(node, yaml.SequenceNode):
            return Value(
                [
                    self._value(item, loader, where, f"{path}[{i}]")
                    for i, item in enumerate(node.value)
                ],
                place,
            )
        if isinstance(node, yaml.MappingNode):
            return Value(self._mapping(node, loader, where, path), place)
        # A date is meant as text: nothing in the tree is one.
        data = node.value
        if node.tag in PLAIN_TAGS:
            try:
                data = loader.construct_object(node)
            except (ValueError, LookupError):  # `!!int x`, `!!bool x`, `!!int`
                self.problems.append(
                    f"{place}: {path}: {node.value!r} is no {node.tag.rsplit(':')[-1]}"
                )
        elif node.tag != "tag:yaml.org,2002:timestamp":
            self.problems.append(
                f"{place}: {path}: the YAML tag {node.tag} is not known here; put quotes around "
                "the text"
            )
        return Value(data, place, node.value)

    def _mapping(
        self,
        node: yaml.MappingNode,
        loader: yaml.SafeLoader,
        where: Callable[[int], str],
        path: str,
    ) -> dict[str, Value]:
        mapping: dict[str, Value] = {}
        for key, item in node.value:
            place = where(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{place}: {path or 'the top level'}: a key must be one word")
                continue
            # The key as written: YAML would make True of `on` and a number of `1`.
            name = key.value
            inner = f"{path}.{name}".lstrip(".")
            if name in mapping:
                self.problems.append(
                    f"{place}: {inner}: is here twice, first at {mapping[name].where}"
                )
                continue
            value = self._value(item, loader, where, inner)
            mapping[name] = Value(value.data, place, value.text)
        return mapping
