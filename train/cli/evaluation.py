"""`manyfaces evaluate`: what a run has learnt."""

from pathlib import Path
from typing import Annotated

import typer

from manyfaces.cluster.memory import restart_keeping_memory
from manyfaces.configs.this_machine import num_gpus
from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.training import ProcessOwner
from manyfaces.train.cli.verbs import positive

Network = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A run for its newest checkpoint, RUN@best for its best, a checkpoint's folder, or "
        "the URL of one; what `manyfaces export` wrote; weights that others have published.",
    ),
]
PairSets = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="SET",
        help="An InsightFace .bin, or a list of pairs beside its images (.txt, .csv); may be "
        "repeated. Default: what the run itself is evaluated by.",
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
    context: typer.Context,
    model: Network,
    words: EvaluationWords = None,
    pairs: PairSets = None,
    batch_size: BatchSize = 200,
) -> None:
    """Score a run, a checkpoint or a file of weights.

    The results are added to the report of the step, RUN/evaluation/step-N/, to the run's record and
    to its run in MLflow; those of a file to FILE.evaluation/ beside it. `±` is the standard
    deviation over folds, `[a, b]` a 95 % interval by the bootstrap. torch uses all cores, or as
    many as OMP_NUM_THREADS says.
    """
    if isinstance(context.obj, ProcessOwner) and not num_gpus():
        restart_keeping_memory()
    from manyfaces.data.progress import image_progress
    from manyfaces.train.evaluation.evaluate_run import evaluate_run
    from manyfaces.train.evaluation.tables import detail_tables, results_tables
    from manyfaces.train.evaluation.trained import use_all_cores
    from manyfaces.train.sync import record_evaluation

    use_all_cores()
    with image_progress("embedding", console) as progress:
        weights, folder, results = evaluate_run(
            model, pairs or (), batch_size, progress, words or (), progress.rows
        )
    for table in (*results_tables(results), *detail_tables(results)):
        console.print(table)
    say(f"weights     {weights}\nreport      {folder}")
    record_evaluation(folder.parent.parent, console)
