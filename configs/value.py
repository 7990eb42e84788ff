"""Values that know where a person wrote them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Value:
    """A scalar, a `dict[str, Value]` or a `list[Value]`, and where a person wrote it."""

    data: Any
    where: str
    """`file:line` or `override 'word'`."""
    text: str | None = None
    """A scalar as it was written."""
    layer: int = 0
    """Which of the merged trees it is from: below 0 a recipe's base, 0 the recipe, above 0 the
    override words in their order."""
    written: str | None = None
    """The dotted key that a person wrote, where that is an old spelling of its key."""

    @classmethod
    def of(cls, plain: Any, where: str) -> "Value":
        """A tree without places, all of which is from `where`."""
        if isinstance(plain, dict):
            return cls({key: cls.of(value, where) for key, value in plain.items()}, where)
        if isinstance(plain, list | tuple):
            return cls([cls.of(value, where) for value in plain], where)
        return cls(plain, where, None if plain is None else str(plain))

    def child(self, key: str | int) -> "Value | None":
        """What stands under this key of the mapping, or at this place of the list."""
        found: Value | None = None
        if isinstance(self.data, dict):
            found = self.data.get(key)
        elif isinstance(self.data, list) and isinstance(key, int) and 0 <= key < len(self.data):
            found = self.data[key]
        return found

    def get(self, *path: str | int) -> "Value | None":
        """What stands at the path, if anything does."""
        found: Value | None = self
        for key in path:
            found = found.child(key) if found is not None else None
        return found

    def put(self, value: "Value", *path: str) -> "Value":
        """The same tree with `value` at the path, mappings on the way being made."""
        if not path:
            return value
        key, *below = path
        mapping = dict(self.data) if isinstance(self.data, dict) else {}
        mapping[key] = mapping.get(key, Value({}, value.where)).put(value, *below)
        return replace(self, data=mapping)

    def without(self, *path: str) -> "Value":
        """The same tree without what stands at the path."""
        key, *below = path
        mapping = dict(self.data)
        if below:
            mapping[key] = mapping[key].without(*below)
        else:
            del mapping[key]
        return replace(self, data=mapping)

    def plain(self) -> Any:
        """The same tree in plain Python values, without the places."""
        if isinstance(self.data, dict):
            return {key: value.plain() for key, value in self.data.items()}
        if isinstance(self.data, list):
            return [value.plain() for value in self.data]
        return self.data


@dataclass(frozen=True)
class KindKeys:
    """The dotted keys of the tree at which a `kind` word chooses."""

    single: frozenset[str]
    """Those of one kind."""
    lists: Mapping[str, tuple[str, ...]]
    """Those of a list of kinds, with the usual order of the family's words."""


def merge(base: Value, over: Value, kinds: KindKeys, path: str = "") -> Value:
    """`over` on top of `base`, mapping by mapping. Where one kind stands, a mapping of another
    `kind` replaces the base's whole, and a word stands for a mapping with this `kind`. On top of a
    list of kinds, a list replaces the whole and a mapping changes it by word (`merge_by_word`)."""
    if path in kinds.lists and isinstance(base.data, list) and isinstance(over.data, dict):
        return merge_by_word(base, over, kinds, path)
    if path in kinds.single:
        base, over = _with_kind(base), _with_kind(over)
    if not (isinstance(base.data, dict) and isinstance(over.data, dict)):
        return over
    words = [tree.data["kind"].data for tree in (base, over) if "kind" in tree.data]
    if path in kinds.single and len(words) == 2 and words[0] != words[1]:
        return over
    merged = dict(base.data)
    for key, value in over.data.items():
        below = f"{path}.{key}".lstrip(".")
        merged[key] = merge(base.data[key], value, kinds, below) if key in base.data else value
    return replace(base, data=merged)


def merge_by_word(base: Value, over: Value, kinds: KindKeys, path: str) -> Value:
    """A list of kinds with the changes of a mapping from words to settings: the first entry of each
    word gets these settings. An entry is added where there is none, before the first one that
    comes later in the usual order."""
    entries = [_with_kind(entry) for entry in base.data]
    for word, settings in over.data.items():
        if isinstance(settings.data, dict):
            named = {"kind": Value(word, settings.where, word), **settings.data}
            settings = replace(settings, data=named)
        words = [_word(entry) for entry in entries]
        if word in words:
            number = words.index(word)
            entries[number] = merge(entries[number], settings, kinds, f"{path}.{word}")
        else:
            entries.insert(_place(word, words, kinds.lists[path]), settings)
    return replace(base, data=entries)


def _place(word: str, words: list[Any], usual_order: tuple[str, ...]) -> int:
    """Where in a list of kinds with these words a further one is added."""
    if word not in usual_order:
        return len(words)
    later = usual_order[usual_order.index(word) + 1 :]
    return next((number for number, other in enumerate(words) if other in later), len(words))


def _word(value: Value) -> Any:
    kind = value.get("kind")
    return None if kind is None else kind.data


def _with_kind(value: Value) -> Value:
    if not isinstance(value.data, str):
        return value
    return replace(value, data={"kind": value}, text=None)
