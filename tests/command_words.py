"""The words of a command, read by the command line's own parser."""

import shlex
from typing import Any

import typer

from manyfaces.configs.load import load
from manyfaces.train.cli.main import app
from manyfaces.train.sweep.grid import axes_of, trials_of


def parsed(line: str) -> dict[str, Any]:
    """The parameters of the verb that `manyfaces ...` calls, by name; nothing is run, and a recipe
    is loaded with its overrides. Raises typer's errors and `UserError` for words that are wrong."""
    program, *words = shlex.split(line, comments=True)
    assert program == "manyfaces", line
    command: Any = typer.main.get_command(app)
    name, context = program, command.make_context(program, words)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    found = dict(context.params)
    recipe = found.get("config")
    if recipe is not None and not recipe.isupper():  # CONFIG stands for any
        words = found.get("words") or ()
        if name == "sweep":
            axes, plain = axes_of(words)
            trials_of(recipe, axes, plain, lambda line: None)
        else:
            load(recipe, words)
    return found
