"""`manyfaces checkpoint VERB ...`: what a run's checkpoints hold, whether their bytes are whole,
and copies of them for other numbers of workers and for other programs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.train.cli.options import TrainedRun
from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.verbs import Verbs, positive

app = typer.Typer(cls=Verbs)

Centres = Annotated[
    Path, typer.Argument(metavar="OUT", help="A new file, NAME.npy or NAME.safetensors.")
]
Unit = Annotated[bool, typer.Option("--unit", help="Scale each centre to length 1.")]
BackboneFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the network of the same checkpoint too: a new file, NAME.pth (the plain "
        "state_dict) or NAME.safetensors (as `manyfaces export` writes it).",
    ),
]

Workers = Annotated[
    int, typer.Option(parser=positive, metavar="N", help="The number of workers to write it for.")
]
Resharded = Annotated[
    Path | None,
    typer.Argument(
        metavar="OUT",
        help="A new folder, such as other/checkpoints/step-00000500. Default: "
        "RUN-for-N/checkpoints/step-..., beside the run.",
    ),
]


@app.command()
def show(run: TrainedRun) -> None:
    """List a run's checkpoints, or what is in one of them.

    With why each is kept (`checkpoint.keep`, `keep_every_steps` and `best`) and what it scored.
    Sizes are compared with what was committed; `verify` compares every byte.
    """
    from rich.filesize import decimal
    from rich.table import Column, Table
    from rich.text import Text

    from manyfaces.train.checkpoint.overview import facts, listed, listed_at

    url = url_of(run)
    found = listed(run) if url is None else listed_at(url)
    columns = {
        "size": [decimal(each.num_bytes) for each in found],
        "workers": [f"{each.world_size}" for each in found],
        "condition": [str(each.fault or "sizes as committed") for each in found],
        "kept": [each.kept for each in found],
        "evaluation": [
            ", ".join(f"{name} {value:.4g}" for name, value in each.headlines.items())
            for each in found
        ],
    }
    told = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(Column("checkpoint", no_wrap=True), *(Column(n, overflow="fold") for n in told))
    for each, *cells in zip(found, *told.values(), strict=True):
        table.add_row(*map(Text, (each.path.name, *cells)))
    console.print(table)
    if url is not None or (run / "checkpoints").is_dir() or found[0].fault is not None:
        return
    table = Table(Column(), Column(overflow="fold"), show_header=False)
    for row in facts(found[0]):
        table.add_row(*map(Text, row))
    console.print(table)


@app.command()
def verify(run: TrainedRun) -> None:
    """Compare every byte of a run's checkpoints.

    Or of the one that is given. The exit code is 2 where any byte is not as it was committed.
    """
    from rich.filesize import decimal

    from manyfaces.train.checkpoint.overview import is_damaged, verifiable

    found = verifiable(run)
    damaged = []
    with _counted("reading", sum(each.num_bytes for each, _ in found)) as count:
        for each, compare in found:
            faults = [each.fault] if each.fault else compare(count)
            for fault in faults:
                say(f"{each.path.name}: {fault}")
            if not faults:
                say(f"{each.path.name}: intact, {decimal(each.num_bytes)}")
            if any(map(is_damaged, faults)):
                damaged.append(each.path.name)
    if damaged:
        raise UserError(
            f"{url_of(run) or run}: damaged: {', '.join(damaged)}; restore the files named above, "
            "or remove the folder: a resume takes the newest checkpoint that is intact"
        )


@app.command()
def reshard(run: TrainedRun, workers: Workers, out: Resharded = None) -> None:
    """Write a checkpoint as N workers would have written it.

    Any number of workers resumes from any checkpoint as it is, and each reads only its own rows.
    But they share the comparing of its bytes by file: where few workers wrote it and many resume,
    most would wait for few. A copy with a file for each spreads that over all of them, and a worker
    then opens one or two files of the class rows. Nothing else changes, and rows keep their bits.

    \b
      manyfaces checkpoint reshard runs/OLD --workers 64
      manyfaces train CONFIG run.name=NEW run.resume_from=runs/OLD-for-64
    """
    from rich.filesize import decimal

    from manyfaces.train.checkpoint.choice import chosen
    from manyfaces.train.checkpoint.commit import committed
    from manyfaces.train.checkpoint.fetched import fetched
    from manyfaces.train.checkpoint.reshard import default_out, num_bytes
    from manyfaces.train.checkpoint.reshard import reshard as write

    checkpoint = chosen(fetched(run))
    place = default_out(checkpoint, workers) if out is None else out
    before = committed(checkpoint).world_size
    with _counted("comparing and writing", num_bytes(checkpoint)) as count:
        write(checkpoint, place, workers, count)
    size = sum(facts.bytes for facts in committed(place).files.values())
    say(f"{place}: {before} -> {workers} workers, {decimal(size)}, of {checkpoint}")
    say(f"resume with run.resume_from={place} and another run.name")


@app.command()
def export(
    run: TrainedRun, out: Centres, unit: Unit = False, backbone: BackboneFile = None
) -> None:
    """Write the class centres to one file for other programs.

    NAME.npy is an array for numpy.load, also where it is larger than the memory; NAME.safetensors
    holds it as `weight`, as InsightFace's Partial FC calls it. Its numbers are float32 [classes,
    dimensions], or [classes, sub-centres, dimensions], and NAME.identities.txt has the classes'
    names, in the order of the rows. The network alone: `manyfaces export`.

    \b
      manyfaces checkpoint export runs/first centres.npy --unit --backbone backbone.pth
    """
    from rich.progress import Progress

    from manyfaces.train.checkpoint.choice import chosen
    from manyfaces.train.checkpoint.fetched import fetched
    from manyfaces.train.evaluation.centres import names_file, write_centres
    from manyfaces.train.evaluation.exported import ENDINGS, refuse_file, write_exported
    from manyfaces.train.evaluation.trained import load_trained

    checkpoint = chosen(fetched(run))
    if backbone is not None:
        refuse_file(backbone, ENDINGS)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing class centres", total=None)
        shape = write_centres(
            checkpoint,
            out,
            unit=unit,
            count=lambda done, total: bar.update(task, completed=done, total=total),
        )
    named = names_file(out) if names_file(out).exists() else "none, as the classes have none"
    say(f"centres     {out}, float32 {list(shape)}\nnames       {named}")
    if backbone is not None:
        trained = load_trained(checkpoint)
        source = f"{trained.config.run.name}, step {trained.state.step}"
        write_exported(trained.encoder, backbone, source)
        say(f"backbone    {backbone}")
    say(f"checkpoint  {checkpoint}")


@contextlib.contextmanager
def _counted(what: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes, and what to tell how many more were moved."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=num_bytes)
        yield lambda size: bar.advance(task, size)
