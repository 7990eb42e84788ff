"""Kinds: what the configuration chooses by a `kind` word, each declared once by one schema class.

A family (margins, backbones, orders ...) is a subclass of `Kind`; its kinds are subclasses of it
with a `kind: Literal["word"] = "word"`. A field of the tree is typed by the family, and takes each
of its kinds: those in the modules of the family's folder, and those that a program has defined
besides. Nothing else lists them.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator, core_schema

from manyfaces.configs.errors import UserError
from manyfaces.configs.node import FILE, NOTHING, PATH, Node

Scalar = bool | int | float | str


class Kind(Node):
    """One of several ways to do a thing. A family sets `folder` and `config_key`, a kind
    `kind` and `target`."""

    folder: ClassVar[str]
    """The package whose modules declare the family's kinds."""
    config_key: ClassVar[str]
    """Dotted key at which the configuration chooses one of the family, or has a list of them."""
    target: ClassVar[str]
    """Dotted name of what the kind builds; a name, so that the configuration imports nothing
    heavy."""
    not_for_target: ClassVar[tuple[str, ...]] = ("kind",)
    """Fields that `target` is not called with, as something else reads them."""
    usual_order: ClassVar[tuple[str, ...]] = ()
    """Words of the family in the order in which a list has them. A kind that is added to a list by
    its word alone goes to its place in this order, one that is not named here to the end."""

    @classmethod
    def word(cls) -> str | None:
        """The `kind` word; None for a family."""
        info = cls.model_fields.get("kind")
        return get_args(info.annotation)[0] if info is not None else None

    @classmethod
    def kinds(cls) -> tuple[type[Self], ...]:
        """The kinds of the family, in the order of their words; of a kind, itself."""
        if cls.word() is not None:
            return (cls,)
        _import_folder(cls.folder)
        return tuple(sorted(_leaves(cls), key=lambda leaf: str(leaf.word())))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Pydantic has not collected the fields of the class yet; a mixin may declare the word.
        if any("kind" in vars(each).get("__annotations__", {}) for each in cls.__mro__):
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls._validate)

    @classmethod
    def _validate(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):  # the word alone
            value = {"kind": value}
        return _union(cls.kinds()).validate_python(value)

    def check(self, config: Any) -> None:
        """Raise `ValueError` for what this kind does not go with in the whole tree."""

    def arguments(self) -> dict[str, Any]:
        """What `target` is called with: the fields by name, but for those of `not_for_target`."""
        names = (name for name in type(self).model_fields if name not in self.not_for_target)
        return {name: getattr(self, name) for name in names}

    def build(self, **more: Any) -> Any:
        """`target`, called with the fields and with `more`. Raises `UserError` where a file of the
        person's own does not hold it."""
        return imported(self.target)(**self.arguments(), **more)


class Custom(Node):
    """Mixed into the kind `custom` of a family: a class of one's own in a file."""

    kind: Literal["custom"] = "custom"
    file: Annotated[str, NOTHING, PATH, FILE]
    """Python file that every worker sees. Its SHA-256 is a part of the run's identity."""
    name: str
    """The class in it."""
    parameters: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """What it is made with."""

    config_key: ClassVar[str]
    """The family's."""
    base: ClassVar[str]
    """Dotted name of the class that it is derived from."""

    def build(self, **more: Any) -> Any:
        """An object of the class, made with the parameters and with those of `more` that it takes.

        Raises `UserError` for a file that does not hold the class, and for whatever the class
        raises; it begins with the key of the configuration and has the line of the file, where
        there is one.
        """
        path, place = Path(self.file), f"{self.config_key}: {self.file}"
        if not path.is_file():
            raise UserError(f"{place}: no such file; every worker must see it")
        made = self._class(path)
        try:
            signature = inspect.signature(made)
            accepted = signature.parameters
            takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
            given = {name: what for name, what in more.items() if takes_all or name in accepted}
            try:
                signature.bind(**self.parameters, **given)
            except TypeError as error:
                takes = ", ".join(accepted) or "nothing"
                raise UserError(f"{place}: {self.name}: {error}; it takes {takes}") from error
            built = made(**self.parameters, **given)
        except UserError:
            raise
        except Exception as error:  # whatever a person's own code does
            raise UserError(f"{place}{_told(error, path)}") from error
        if not isinstance(built, imported(self.base)):
            what = f"{self.name}({', '.join(self.parameters)}) is a {type(built).__name__}"
            raise UserError(f"{place}: {what}; derive it from {self.base}")
        return built

    def _class(self, path: Path) -> Any:
        place = f"{self.config_key}: {self.file}"
        spec = importlib.util.spec_from_file_location(f"manyfaces_custom_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"{place}: expected Python in a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a person's own code does
            raise UserError(f"{place}{_told(error, path)}") from error
        made = getattr(module, self.name, None)
        if not callable(made):
            own = (each for each in vars(module).values() if isinstance(each, type))
            names = ", ".join(each.__name__ for each in own if each.__module__ == spec.name)
            what = "is not there" if made is None else "is no class"
            raise UserError(f"{place}: {self.name} {what}; the file defines {names or 'no class'}")
        return made


def _told(error: Exception, path: Path) -> str:
    """The line of the file at which a person's own code failed, where it did there, and what it
    raised."""
    line, message = None, str(error)
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    return f"{f':{line}' if line else ''}: {type(error).__name__}: {message}"


def imported(name: str) -> Any:
    """The object with this dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def families(annotation: Any) -> list[type[Kind]]:
    """The families, or single kinds, that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        return [annotation]
    return [family for part in get_args(annotation) for family in families(part)]


@cache
def _import_folder(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def _leaves(family: type[Kind]) -> Iterator[type[Any]]:
    for child in family.__subclasses__():
        if child.word() is not None:
            yield child
        yield from _leaves(child)


@cache
def _union(leaves: tuple[type[Kind], ...]) -> SchemaValidator:
    by_word: dict[str, type[Kind]] = {}
    for leaf in leaves:
        word = str(leaf.word())
        if other := by_word.get(word):
            names = " and ".join(f"{each.__module__}.{each.__qualname__}" for each in (other, leaf))
            raise PydanticCustomError(
                "kind_twice",
                "two classes are kind {word}, {names}; give one of them another word",
                {"word": word, "names": names},
            )
        by_word[word] = leaf
    choices = {word: leaf.__pydantic_core_schema__ for word, leaf in by_word.items()}
    return SchemaValidator(core_schema.tagged_union_schema(choices, discriminator="kind"))
