"""`manyfaces evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.verbs import positive

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="runs/NAME, or one of its checkpoint folders.")
]
PairSets = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="BIN",
        help="An InsightFace .bin; may be repeated. Default: what the run itself is evaluated by.",
    ),
]
BatchSize = Annotated[int, typer.Option(parser=positive, metavar="N")]


def evaluate(run: Run, pairs: PairSets = None, batch_size: BatchSize = 200) -> None:
    """Score a run's newest checkpoint."""
    from rich.progress import Progress

    from manyfaces.train.evaluation.evaluate_run import evaluate_run
    from manyfaces.train.evaluation.tables import results_tables

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("embedding", total=None)
        checkpoint, results = evaluate_run(
            run,
            pairs or (),
            batch_size,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    for table in results_tables(results):
        console.print(table)
    say(f"checkpoint  {checkpoint}\nreport      {checkpoint.parent.parent / 'evaluation'}")
