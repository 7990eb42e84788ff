"""`manyfaces checkpoint VERB ...`: what a run's checkpoints hold, and whether their bytes are
whole."""

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import TrainedRun
from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.verbs import Verbs

app = typer.Typer(cls=Verbs)


@app.command()
def show(run: TrainedRun) -> None:
    """List a run's checkpoints, or what is in one of them.

    With why each is kept (`checkpoint.keep`, `keep_every_steps` and `best`) and what it scored.
    Sizes are compared with what was committed; `verify` compares every byte.
    """
    from rich.filesize import decimal
    from rich.table import Column, Table
    from rich.text import Text

    from manyfaces.train.checkpoint.overview import facts, listed

    found = listed(run)
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
    table = Table(Column("checkpoint", no_wrap=True), *told)
    for each, *cells in zip(found, *told.values(), strict=True):
        table.add_row(*map(Text, (each.path.name, *cells)))
    console.print(table)
    if (run / "checkpoints").is_dir() or found[0].fault is not None:
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
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    from manyfaces.train.checkpoint.overview import corrupt_files, is_damaged, listed

    found = listed(run)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed()
    damaged = []
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("reading", total=sum(each.num_bytes for each in found))
        for each in found:
            faults = [each.fault] if each.fault else []
            if not faults:
                faults = corrupt_files(each.path, lambda size: bar.advance(task, size))
            for fault in faults:
                say(f"{each.path.name}: {fault}")
            if not faults:
                say(f"{each.path.name}: intact, {decimal(each.num_bytes)}")
            if any(map(is_damaged, faults)):
                damaged.append(each.path.name)
    if damaged:
        raise UserError(
            f"{run}: damaged: {', '.join(damaged)}; restore the files named above, or remove the "
            "folder: a resume takes the newest checkpoint that is intact"
        )
