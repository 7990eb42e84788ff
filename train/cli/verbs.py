"""How words are read: a group of verbs, and options that take several words."""

import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from manyfaces.configs.errors import UserError


class Verbs(TyperGroup):
    """A group of verbs that names the nearest one, or all of them, where a word is none of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            raise UserError(f"{ctx.command_path}: a verb is missing; {self._all(ctx)}")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        word = args[0]
        if word in self.commands or word.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        near = get_close_matches(word, self.commands, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{ctx.command_path}: no verb {word!r}; {meant}{self._all(ctx)}")

    def _all(self, ctx: Any) -> str:
        return f"the verbs are {', '.join(self.list_commands(ctx))}"


def several_words(option: str) -> type[TyperCommand]:
    """A command whose `option` takes all words up to the next option, and may be repeated."""

    class Several(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, _repeated(option, args))

    return Several


def _repeated(option: str, args: list[str]) -> list[str]:
    """`--o a b` as `--o a --o b`."""
    words: list[str] = []
    inside = False
    for number, word in enumerate(args):
        if word.startswith("-"):
            inside = word == option
        elif inside and args[number - 1] != option:
            words.append(option)
        words.append(word)
    return words


def usage_line(error: typer.TyperException) -> str:
    """One line about words that cannot be read, with the verb whose help says more."""
    message = error.format_message().strip().rstrip(".").replace("\n", " ")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "manyfaces"
    return f"{message[:1].lower()}{message[1:]}; see {path} --help"


def _number(
    make: Callable[[str], Any], what: str, fits: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        try:
            number = make(word)
        except ValueError:
            number = None
        if number is None or not fits(number):
            raise typer.BadParameter(f"must be {what}, not {word!r}")
        return number

    return read


whole = _number(int, "a whole number", lambda number: True)
positive = _number(int, "a whole number above 0", lambda number: number > 0)
quality = _number(int, "a JPEG quality from 1 to 100", lambda number: 1 <= number <= 100)
decimal = _number(float, "a number", lambda number: True)
above_zero = _number(float, "a number above 0", lambda number: 0 < number < math.inf)
