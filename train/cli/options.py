"""Arguments and options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

from manyfaces.train.cli.verbs import positive, whole


def _recipes(incomplete: str) -> list[str]:
    """What a shell offers for the beginning of a recipe's name: ours, and files."""
    from manyfaces.configs.reader import recipes

    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    files = [f"{path}/" for path in folder.glob("*/")]
    files += [str(path) for path in folder.glob("*.yaml")]
    return [name for name in [*recipes(), *sorted(files)] if name.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    """What a shell offers for the beginning of `path.to.key=value`."""
    from manyfaces.configs.explain import keys

    return [f"{key}=" for key in keys() if key.startswith(incomplete)]


_RECIPE = typer.Argument(metavar="CONFIG", help="A recipe (YAML).", autocompletion=_recipes)
Recipe = Annotated[str, _RECIPE]
RecipeOrNot = Annotated[str | None, _RECIPE]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="path.to.key=value",
        help="Values in place of the recipe's.",
        autocompletion=_keys,
    ),
]
Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset's folder.")]
NewDataset = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")]
TrainedRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="runs/NAME for its newest checkpoint, runs/NAME@best for its best, or a checkpoint's "
        "folder; or the URL of a run or a checkpoint.",
    ),
]
Seed = Annotated[int, typer.Option(parser=whole, metavar="N")]
Processes = Annotated[
    int | None, typer.Option(parser=positive, metavar="N", help="Default: all cores.")
]
ShardImages = Annotated[
    int, typer.Option(parser=positive, metavar="N", help="Images of a shard at most.")
]
