"""What the verbs print: results on stdout, notes and errors on stderr."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from manyfaces.configs.schema import Config

# Names, paths and messages of others are shown as they are: rich would read `[x]` as a style and
# `:x:` as a picture.
console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
_stderr = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, stderr=True)


def say(text: str) -> None:
    """A line on stdout, as it is."""
    console.print(text)


def note(text: str) -> None:
    """A line on stderr about something that works and is worth knowing."""
    _stderr.print(Text.assemble(("note:", "bold"), f" {text}"))


def fail(text: str) -> None:
    """A line on stderr about what a person has to mend."""
    _stderr.print(Text.assemble(("error:", "bold red"), f" {text}"))


def stopped() -> None:
    """A line on stderr after Ctrl-C."""
    _stderr.print("stopped; the same command resumes from the last checkpoint")


def load_config(recipe: str, words: Sequence[str]) -> "Config":
    """The configuration; a note on stderr about each old spelling. Raises `UserError`."""
    config, spellings = read_config(recipe, words)
    for line in spellings:
        note(line)
    return config


def read_config(recipe: str, words: Sequence[str]) -> "tuple[Config, list[str]]":
    """The configuration, and a line about each old spelling, each once. Raises `UserError`."""
    from manyfaces.configs.load import load

    told: dict[str, None] = {}
    config = load(recipe, words, tell=lambda line: told.setdefault(line))
    return config, list(told)
