"""What a person wrote: YAML files with `base:` and `path.to.key=value` words, read into values that
know where they stand."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.migrate import lift_layer
from manyfaces.configs.value import KindKeys, Value, merge

HERE = Path(__file__).parent
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "map", "seq")
}
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers of YAML 1.2 that PyYAML, which follows 1.1, takes for text: `1e-3`."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, to which `1e-3` is a number."""


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts quotes around text that looks like such a number."""


for _class in (Loader, Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name: `demo`, and `quick_arcface` for
    `quick/arcface.yaml`. One in a folder goes by its bare name too, where no other has it."""
    files = sorted(path.relative_to(HERE) for path in HERE.rglob("*.yaml"))
    names = {"_".join(path.with_suffix("").parts): HERE / path for path in files}
    stems = [path.stem for path in files]
    return names | {path.stem: HERE / path for path in files if stems.count(path.stem) == 1}


def recipes() -> list[str]:
    """The recipes that come with the package, as one asks for them: `quick/arcface`."""
    return sorted(map(_asked_for, set(shipped().values())))


def _asked_for(recipe: Path) -> str:
    return recipe.relative_to(HERE).with_suffix("").as_posix()


def find(name: str | Path, folder: Path) -> Path:
    """The recipe of this name (`.yaml` may be left out) in the folder, else the shipped one.

    Raises `UserError` saying what stands there instead.
    """
    name = Path(name).expanduser()
    asked = folder / name
    try:
        for path in (asked, Path(f"{asked}.yaml")):
            if path.is_file():
                return path
        is_directory = asked.is_dir()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    # Only a name that can mean ours: a mistyped path of one's own must not load another file.
    parts = name.with_suffix("").parts if name.suffix in ("", ".yaml") else ()
    if parts and parts[0] == "configs":
        parts = parts[1:]
    ours = shipped()
    if "_".join(parts) in ours:
        return ours["_".join(parts)]
    near = get_close_matches("_".join(parts), ours, 1) or get_close_matches(name.stem, ours, 1)
    hint = f"; did you mean {_asked_for(ours[near[0]])}?" if near else ""
    what = "is a directory, not a recipe" if is_directory else "no such file"
    raise UserError(f"{name}: {what}{hint}; shipped recipes are {', '.join(recipes())}")


@dataclass
class Reader:
    """A reader of files and words that reads on after an error, so that a person sees all errors at
    once."""

    kinds: KindKeys
    """Where in the tree a `kind` word chooses."""
    problems: list[str] = field(default_factory=list)
    """A line about each thing that is wrong."""
    notices: list[str] = field(default_factory=list)
    """A line about each old spelling that is lifted before files and words merge."""
    _layer: int = 0

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
        tree = self.parse(text, lambda line: f"{path}:{line + 1}", layer=-len(chain))
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
        tree = self._lifted(tree)
        if "base" not in tree.data:
            return tree
        base = self._base(tree.data["base"], path, (*chain, path.resolve()))
        tree = tree.without("base")
        return replace(merge(base, tree, self.kinds), where=tree.where) if base else tree

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
        for layer, word in enumerate(words, 1):
            where = f"override {word!r}"
            key, equals, text = word.partition("=")
            path = key.strip().split(".")
            if not equals or not all(path):
                self.problems.append(f"{where}: is not of the form path.to.key=value")
                continue
            num_problems = len(self.problems)
            nothing = Value(None, where, text, layer=layer)
            value = self.parse(text, _always(where), key.strip(), layer=layer) or nothing
            if len(self.problems) > num_problems:
                continue
            for part in reversed(path):
                value = Value({part: value}, where, layer=layer)
            tree = merge(tree, self._lifted(value), self.kinds)
        return tree

    def _lifted(self, tree: Value) -> Value:
        lifted = lift_layer(tree)
        self.problems += lifted.problems
        self.notices += lifted.notices
        return lifted.tree

    def parse(
        self, text: str, where: Callable[[int], str], path: str = "", *, layer: int = 0
    ) -> Value | None:
        """The one YAML document of the text, which stands at `path` of the tree; none for nothing,
        and for what is no YAML."""
        self._layer = layer
        try:
            loader = Loader(text)
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
        self, node: yaml.Node, loader: Loader, where: Callable[[int], str], path: str
    ) -> Value:
        place = where(node.start_mark.line)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self._value(item, loader, where, f"{path}[{i}]")
                for i, item in enumerate(node.value)
            ]
            return Value(items, place, layer=self._layer)
        if isinstance(node, yaml.MappingNode):
            return Value(self._mapping(node, loader, where, path), place, layer=self._layer)
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
        return Value(data, place, node.value, self._layer)

    def _mapping(
        self,
        node: yaml.MappingNode,
        loader: Loader,
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
            mapping[name] = replace(value, where=place)
        return mapping


def _always(where: str) -> Callable[[int], str]:
    return lambda line: where
