"""`manyfaces report` and `manyfaces compare`: pages about runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.train.cli.output import console, note, progress, say
from manyfaces.train.cli.verbs import positive

if TYPE_CHECKING:
    from manyfaces.train.report.run_data import RunData

COMPARISON = "comparison.html"
_ENDINGS = (".html", ".htm")

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Folders of runs, as in runs/NAME, or URLs of runs."),
]
Page = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Where the page goes. Default: RUN/report.html for one run, else {COMPARISON}.",
    ),
]
Embeddings = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Add a map of the embeddings of N identities of the dataset, by the newest "
        "checkpoint. Default: no map.",
    ),
]


def report(runs: Runs, out: Page = None, embeddings: Embeddings = None) -> None:
    """Write a page about a run, or about several.

    One HTML file that needs no network: figures, curves, evaluations with the hardest pairs, the
    data, the course of the run, its configuration. Every training leaves one in its folder. What a
    run has not recorded is told there and here.
    """
    known = _read(runs)
    place = out or _default(runs, known)
    _write(known, place, embeddings=embeddings or 0)


def compare(runs: Runs, out: Page = None) -> None:
    """Compare runs: figures, curves, and settings that differ.

    The screen has the figures and the settings, the page also the curves over each other.

    \b
      manyfaces compare runs/first runs/second
    """
    if len(runs) < 2:
        raise UserError(
            f"{runs[0]} is one run; give two or more to compare, or `manyfaces report {runs[0]}`"
        )
    known = _read(runs)
    _show(known)
    _write(known, out or Path(COMPARISON), differences_only=True)


def _read(runs: Sequence[str]) -> "list[RunData]":
    from manyfaces.train.report.run_data import distinct, read_run

    with progress("reading"):
        return distinct([read_run(run) for run in runs])


def _default(runs: Sequence[str], known: "Sequence[RunData]") -> Path:
    """Where the page goes: into the folder of a single run, but for one at a URL."""
    if len(known) > 1:
        return Path(COMPARISON)
    return Path(f"{known[0].name}.html") if url_of(runs[0]) else known[0].folder / "report.html"


def _write(
    runs: "Sequence[RunData]", out: Path, *, embeddings: int = 0, differences_only: bool = False
) -> None:
    from rich.filesize import decimal

    from manyfaces.train.report.page import write_page

    if out.suffix.lower() not in _ENDINGS:
        raise UserError(f"{out}: an HTML page is written; give a name that ends in .html")
    with progress("embedding images" if embeddings else "drawing"):
        size = write_page(runs, out, embeddings=embeddings, differences_only=differences_only)
    for run in runs:
        for line in run.missing:
            note(f"{run.name}: {line[:1].lower()}{line[1:].removesuffix('.')}")
    say(f"report      {out}, {decimal(size)}")


def _show(runs: "Sequence[RunData]") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from manyfaces.train.report.configuration import config_differences
    from manyfaces.train.report.facts import status
    from manyfaces.train.report.headline import side_by_side

    def table_of(heading: str) -> Table:
        return Table(heading, *(Column(run.name, overflow="fold") for run in runs))

    table = table_of("")
    table.add_row("status", *(Text(status(run)) for run in runs))
    for row in side_by_side(runs):
        table.add_row(Text(row.label), *(Text(each.text) for each in row.values))
    console.print(table)
    differing = config_differences([run.config for run in runs])
    if not differing:
        say("the configurations are the same, as far as they are there")
        return
    table = table_of("setting")
    for each in differing:
        table.add_row(Text(each.key), *map(Text, each.values))
    console.print(table)
