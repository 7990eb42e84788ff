"""The grid of a sweep: words whose value is a list are its axes, and each combination of their
values is a trial."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.reader import Loader
from manyfaces.configs.schema import Config

MOST_TRIALS = 1000
"""Names have three digits."""
_OWN = {
    "run.name": "each trial has a name of its own",
    "run.dir": "all trials stand in one folder",
    "run.work_dir": "all trials stand in one folder",
}
"""Keys that are no axis, and why."""
_WORD = re.compile(r"^override '.*?': ")
"""How a line about a word begins."""


@dataclass(frozen=True)
class Axis:
    """A key, and the values that it takes."""

    key: str
    values: tuple[str, ...]
    """As they were written."""


@dataclass(frozen=True)
class Trial:
    """One run of the sweep."""

    values: tuple[str, ...]
    """Its value of each axis."""
    config: Config

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.run.name


def axes_of(words: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes, and the words that hold for all trials. Raises `UserError` for an axis without
    values, for one of twice the same value or of a key that cannot be one, and where there is no
    axis."""
    axes: dict[str, Axis] = {}
    plain = []
    for word in words:
        key, _, text = word.partition("=")
        values = _values(text)
        if values is None:
            plain.append(word)
            continue
        axis = Axis(key.strip(), values)
        if reason := _mistake(axis, axes):
            raise UserError(f"sweep {word!r}: {reason}")
        axes[axis.key] = axis
    if not axes:
        raise UserError(
            "sweep: no word has a list of values; give at least one, as 'head.margin.m=[0.3,0.4]'"
        )
    return list(axes.values()), plain


def trials_of(
    recipe: str, axes: Sequence[Axis], plain: Sequence[str], tell: Callable[[str], None]
) -> list[Trial]:
    """A trial for each combination, the last axis' values changing first. `tell` gets a line about
    each old spelling. Raises `UserError` for too many, and with one line for each thing that is
    wrong in any of them."""
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MOST_TRIALS:
        raise UserError(f"sweep: {len(combinations):,} trials; at most {MOST_TRIALS:,} are taken")
    trials, problems = [], dict[str, str]()
    for number, values in enumerate(combinations):
        words = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
        try:
            config = load(recipe, [*plain, *words], tell)
        except UserError as error:
            for line in str(error).splitlines():
                # An unknown key is told once, not with each of its values.
                problems.setdefault(_WORD.sub("", line), line)
            continue
        name = f"{config.run.name}-{number:03d}"
        run = config.run.model_copy(update={"name": name})
        trials.append(Trial(values, config.model_copy(update={"run": run})))
    if problems:
        raise UserError("\n".join(problems.values()))
    return trials


def _mistake(axis: Axis, others: dict[str, Axis]) -> str:
    """Why this is no axis; "" where it is one."""
    if axis.key in _OWN:
        return f"{axis.key} is no axis: {_OWN[axis.key]}"
    if axis.key in others:
        return f"{axis.key} is an axis already"
    if not axis.values:
        return "the list of values is empty"
    if len(set(axis.values)) < len(axis.values):
        return "has the same value twice"
    return ""


def _values(text: str) -> tuple[str, ...] | None:
    """The texts of a list's values; None for what is no list."""
    try:
        node = yaml.compose(text, Loader)
    except yaml.YAMLError:  # whoever loads the word tells what is wrong with it
        return None
    if not isinstance(node, yaml.SequenceNode):
        return None
    return tuple(text[item.start_mark.index : item.end_mark.index].strip() for item in node.value)
