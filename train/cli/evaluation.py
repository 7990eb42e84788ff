"""`manyfaces evaluate` and `manyfaces export`: what a run has learnt."""

from pathlib import Path
from typing import Annotated

import typer

from manyfaces.train.cli.options import TrainedRun
from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.verbs import positive

PairSets = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="BIN",
        help="An InsightFace .bin; may be repeated. Default: what the run itself is evaluated by.",
    ),
]
EvaluationWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="evaluation.KEY=VALUE",
        help="What to evaluate by in place of what the run itself is: "
        "'evaluation.protocols=[{kind: ijb, ...}]'; `manyfaces check --explain "
        "evaluation.protocols` tells the kinds.",
    ),
]
BatchSize = Annotated[int, typer.Option(parser=positive, metavar="N")]


def evaluate(
    run: TrainedRun,
    words: EvaluationWords = None,
    pairs: PairSets = None,
    batch_size: BatchSize = 200,
) -> None:
    """Score a run's newest checkpoint, or another."""
    from manyfaces.data.progress import image_progress
    from manyfaces.train.evaluation.evaluate_run import evaluate_run
    from manyfaces.train.evaluation.tables import results_tables

    with image_progress("embedding", console) as progress:
        checkpoint, folder, results = evaluate_run(
            run, pairs or (), batch_size, progress, words or (), progress.rows
        )
    for table in results_tables(results):
        console.print(table)
    say(f"checkpoint  {checkpoint}\nreport      {folder}")


Exported = Annotated[
    Path, typer.Argument(metavar="OUT", help="A new file, NAME.safetensors or NAME.pth.")
]


def export(run: TrainedRun, out: Exported) -> None:
    """Write a run's backbone to one file.

    It is for `load_model`, `model.init` and other programs: it holds the weights and, in its
    metadata, all that it takes to embed images by them. A backbone of one's own needs its Python
    file besides. NAME.pth is the plain state_dict, as InsightFace's backbone.pth is: `model.init`
    reads it, `load_model` does not. Class centres: `manyfaces checkpoint export`.
    """
    from manyfaces.train.evaluation.exported import write_exported
    from manyfaces.train.evaluation.trained import open_trained

    trained = open_trained(run)
    write_exported(trained.encoder, out, f"{trained.config.run.name}, step {trained.state.step}")
    say(f"exported    {out}\ncheckpoint  {trained.checkpoint}")
