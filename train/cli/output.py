"""What the verbs print: results on stdout, notes and errors on stderr."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from manyfaces.configs.redact import redact

if TYPE_CHECKING:
    from manyfaces.configs.schema import Config


class _Console(Console):
    """A console that shows no credentials."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_without_credentials, objects), **options)


def _without_credentials(shown: Any) -> Any:
    if isinstance(shown, Text) and redact(shown.plain) != shown.plain:
        return Text(redact(shown.plain))
    return redact(shown) if isinstance(shown, str) else shown


# Names, paths and messages of others are shown as they are: rich would read `[x]` as a style and
# `:x:` as a picture.
console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
_stderr = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False, stderr=True)


def say(text: str) -> None:
    """A line on stdout, as it is."""
    console.print(text)


def note(text: str) -> None:
    """A line on stderr about something that works and is worth knowing."""
    _stderr.print(Text.assemble(("note:", "bold"), f" {text}"))


def fail(text: str) -> None:
    """A line on stderr about what a person has to mend."""
    _stderr.print(Text.assemble(("error:", "bold red"), f" {text}"))


def stopped(text: str) -> None:
    """A line on stderr about an end that was asked for."""
    _stderr.print(text)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that something goes on, and what of it, on a terminal alone; gives a function
    that is told what comes next."""
    if not _stderr.is_terminal:
        yield lambda what: None
        return
    with _stderr.status(text) as shown:
        yield lambda what: shown.update(f"{text}: {what}")


def load_config(recipe: str, words: Sequence[str]) -> "Config":
    """The configuration; a note on stderr about each old spelling. Raises `UserError`."""
    config, spellings = read_config(recipe, words)
    for line in spellings:
        note(line)
    return config


def read_config(recipe: str, words: Sequence[str]) -> "tuple[Config, list[str]]":
    """The configuration, and a line about each old spelling and about credentials in it, each
    once. Raises `UserError`."""
    from manyfaces.configs.errors import UserError
    from manyfaces.configs.identity import keys_with_credentials, keys_without_credentials
    from manyfaces.configs.load import load

    told: dict[str, None] = {}
    config = load(recipe, words, tell=lambda line: told.setdefault(line))
    if keys := keys_without_credentials(config):
        raise UserError(
            f"{keys[0]}: the credentials of its URL were hidden when this configuration was "
            f"written; give it anew: {keys[0]}=URL"
        )
    if keys := keys_with_credentials(config):
        told.setdefault(
            f"credentials stand in {', '.join(keys)}: no file or screen of the run will show them, "
            "but recipes and command lines do; they are better kept in the environment "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_PROFILE, ...)"
        )
    return config, list(told)
