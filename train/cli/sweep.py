"""`manyfaces sweep`: the same run with every combination of some values."""

from typing import Annotated, Literal

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import Recipe, Words
from manyfaces.train.cli.output import console, note, say
from manyfaces.train.cli.verbs import above_zero, positive

MORE_GRACE_S = 30.0
"""How much longer than its trials the sweep itself may take to end."""
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is compared, as metrics.jsonl names it: lfw/accuracy, train/loss.",
    ),
]
Mode = Annotated[
    Literal["max", "min"] | None,
    typer.Option(help="Whether the highest is the best; default: max, of train/loss min."),
]
Concurrent = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Trials at a time; default: as many as there are cores or GPUs for where a trial has "
        "one worker, else 1.",
    ),
]
GraceEpochs = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="E",
        help="No trial is stopped before; default: a ninth of train.epochs.",
    ),
]
EarlyStop = Annotated[
    bool, typer.Option("--early-stop/--no-early-stop", help="Whether trials may end early (ASHA).")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Join this Ray cluster (`auto` or HOST:PORT), as cluster.address does.",
    ),
]


def sweep(
    config: Recipe,
    metric: Metric,
    words: Words = None,
    mode: Mode = None,
    concurrent: Concurrent = None,
    grace_epochs: GraceEpochs = None,
    early_stop: EarlyStop = True,
    address: Address = None,
) -> None:
    """Train with every combination of some values, and compare.

    Each word whose value is a list is an axis; quote it for the shell. A key whose own value is a
    list needs a list of lists:

    \b
      manyfaces sweep CONFIG 'head.margin.m=[0.3,0.4,0.5]' 'train.optimizer.lr=[0.05,0.1]' \\
        'evaluation.pairs=[[lfw.bin]]' cluster.workers=1 --metric lfw/accuracy

    Every trial is a run of its own, run.name-000 and so on, which may be evaluated or resumed by
    itself. At epochs E, 3 E, 9 E, .. (--grace-epochs E) a trial goes on only while it is among the
    best third of those that came as far (ASHA); the others save a checkpoint and end.

    The same command goes on with a sweep that was interrupted: finished trials are not run again,
    others resume. A trial that fails costs itself only; the exit code is then 2. Table, plot and
    what the trials printed are in run.name-sweep.
    """
    from manyfaces.cluster.signals import listening
    from manyfaces.train.sweep.outcome import outcomes, plot, table
    from manyfaces.train.sweep.sweep import LOSS, Asked, planned, run_sweep

    told: dict[str, None] = {}
    what = planned(
        Asked(
            recipe=config,
            words=tuple(words or ()),
            metric=metric,
            mode=mode or ("min" if metric == LOSS else "max"),
            concurrent=concurrent,
            grace_epochs=grace_epochs,
            stops_early=early_stop,
            address=address,
        ),
        lambda line: told.setdefault(line),
    )
    for line in told:
        note(line)
    say(f"{len(what.trials)} trials, {what.trials[0].name} to {what.trials[-1].name}")
    with listening(what.trials[0].config.cluster.grace_s + MORE_GRACE_S):
        what = run_sweep(what, console)
    found = outcomes(what)
    console.print(table(what, found))
    say(f"plot  {plot(what, found)}")
    failed = [each for each in found if each.is_failed]
    if failed:
        raise UserError(
            f"sweep: {len(failed)} of {len(found)} trials have failed, as the table says; the same "
            "command tries them again"
        )
