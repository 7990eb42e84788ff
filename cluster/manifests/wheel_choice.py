"""Which wheels a machine needs: what manyfaces depends on there, at the pinned versions, without
what the machine has."""

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from manyfaces.cluster.manifests.target import Target
from manyfaces.cluster.manifests.wheel_index import Fetched

Fetch = Callable[[Mapping[str, str]], Fetched]
_Part = tuple[str, str]
"""A package and one of its extras; the empty word for the package alone."""


@dataclass
class WheelChoice:
    """What was chosen, by normalised name."""

    wheels: dict[str, Path] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    """The names that what was chosen asks for, and that the machine was said to have."""
    bound: dict[str, str] = field(default_factory=dict)
    """What was left out with those, because it goes with one version of them alone: name and what
    it requires, such as torch==2.13.0."""
    built: set[str] = field(default_factory=set)
    """The names that were built here, for the index has source distributions of them only."""
    missing: dict[str, str] = field(default_factory=dict)
    """What is needed and not to be had: name and reason."""
    unpinned: set[str] = field(default_factory=set)
    """The names that were taken at their newest version, for none is pinned."""


@dataclass(frozen=True)
class _Facts:
    """What a wheel says about itself."""

    requires_python: SpecifierSet
    requirements: tuple[Requirement, ...]

    @staticmethod
    def of(wheel: Path) -> "_Facts":
        with zipfile.ZipFile(wheel) as archive:
            at_top = (name for name in archive.namelist() if name.count("/") == 1)
            [name] = [name for name in at_top if name.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(name).decode(), headersonly=True)
        requirements = tuple(map(Requirement, metadata.get_all("Requires-Dist") or ()))
        return _Facts(SpecifierSet(metadata.get("Requires-Python") or ""), requirements)

    def asked(self, extra: str, target: Target) -> Iterator[Requirement]:
        """What it depends on, with this extra, on the target."""
        environment = {**target.environment, "extra": extra}
        for requirement in self.requirements:
            if requirement.marker is None or requirement.marker.evaluate(environment):
                yield requirement


def supports(wheel: Path, target: Target) -> str:
    """The versions of Python that the wheel is for, if that of the target is none of them."""
    versions = _Facts.of(wheel).requires_python
    return "" if versions.contains(f"{target.python}.99") else str(versions)


def choose(
    wheel: Path,
    extras: Collection[str],
    pins: Mapping[str, str],
    without: Collection[str],
    target: Target,
    fetch: Fetch,
) -> WheelChoice:
    """Choose what `wheel` with these extras depends on, and what that depends on, at the versions
    of `pins` (by normalised name). `without` are normalised names of packages that the machine
    has: what nothing but these need is not chosen either.

    A package that goes with a single version of one that the machine has, as torchvision does with
    torch, is left out: that of the machine may be another.
    """
    choice = WheelChoice()
    todo = _asked_by(wheel, ["", *extras], target)
    visited: set[_Part] = set()
    while todo:
        unseen = {part: text for part, text in todo.items() if part not in visited}
        visited |= unseen.keys()
        choice.there |= {name for name, _ in unseen if name in without}
        parts = {part: text for part, text in unseen.items() if part[0] not in without}
        _fetch_new(choice, parts, pins, without, target, fetch)
        todo = {}
        for name, extra in parts:
            if name in choice.wheels:
                todo |= _asked_by(choice.wheels[name], [extra], target)
    return choice


def _fetch_new(
    choice: WheelChoice,
    parts: Mapping[_Part, str],
    pins: Mapping[str, str],
    without: Collection[str],
    target: Target,
    fetch: Fetch,
) -> None:
    """Add the wheels of the packages that are not chosen yet."""
    tried = choice.wheels.keys() | choice.bound.keys() | choice.missing.keys()
    specifiers = {name: text for (name, _), text in parts.items() if name not in tried}
    choice.unpinned |= specifiers.keys() - pins.keys()
    wanted = {
        name: f"{name}=={pins[name]}" if name in pins else f"{name}{specifier}"
        for name, specifier in specifiers.items()
    }
    fetched = fetch(wanted)
    choice.built |= fetched.built
    choice.missing |= fetched.missing
    for name, wheel in fetched.wheels.items():
        bound = [
            str(requirement)
            for requirement in _Facts.of(wheel).asked("", target)
            if canonicalize_name(requirement.name) in without and _is_exact(requirement.specifier)
        ]
        if bound:
            choice.bound[name] = bound[0]
        else:
            choice.wheels[name] = wheel


def _asked_by(wheel: Path, extras: Collection[str], target: Target) -> dict[_Part, str]:
    """The parts that a wheel with these extras depends on, each with its version specifier."""
    facts, found = _Facts.of(wheel), dict[_Part, str]()
    for extra in extras:
        for requirement in facts.asked(extra, target):
            name = canonicalize_name(requirement.name)
            for part in ("", *sorted(requirement.extras)):
                found[name, part] = str(requirement.specifier)
    return found


def _is_exact(specifiers: SpecifierSet) -> bool:
    return any(each.operator in ("==", "===") and "*" not in each.version for each in specifiers)
