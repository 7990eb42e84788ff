"""`manyfaces train`, `manyfaces check` and `manyfaces sync-mlflow`."""

import contextlib
from pathlib import Path
from typing import Annotated, get_args

import typer

from manyfaces.cluster.memory import restart_keeping_memory
from manyfaces.cluster.signals import listening
from manyfaces.configs.errors import UserError
from manyfaces.configs.fit import GO_ON
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.machines import Card
from manyfaces.configs.plan import has_gpus
from manyfaces.configs.plan_time import MeasuredRate
from manyfaces.configs.schema import Config
from manyfaces.train.cli.options import Recipe, RecipeOrNot, Words
from manyfaces.train.cli.output import console, load_config, note, read_config, say
from manyfaces.train.cli.verbs import above_zero

Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Join this Ray cluster (`auto` or HOST:PORT), as cluster.address does.",
    ),
]
SimulateNodes = Annotated[
    int | None,
    typer.Option(
        "--simulate-nodes",
        min=2,
        metavar="N",
        help="Start a Ray cluster of N nodes on this machine for this command, and train there, "
        "one worker a node where cluster.workers is auto: to see what a loss of nodes does.",
    ),
]
Explain = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Only say what may stand at and below this key, and when to use what: `head`.",
    ),
]
MemoryGB = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="GB",
        help="Memory of a worker, 10^9 bytes; default: 80 of a GPU, else its share of this "
        "computer's.",
    ),
]
ImagesPerS = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="RATE",
        help="Images a second of all workers, as a run of this kind records it; default: estimated "
        "from the arithmetic of a step.",
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="A run of the same network, image size and precision: its images a second in place of "
        "the estimate.",
    ),
]
MachineName = Annotated[
    str | None,
    typer.Option(
        metavar="GPU",
        help="Plan for workers with this GPU, as cluster.machine does: "
        f"{', '.join(get_args(Card))}.",
    ),
]
MtbfHours = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="HOURS",
        help="Mean time between failures of all workers together; default: 50,676 hours over the "
        "number of workers, as the GPUs of Llama 3's training had.",
    ),
]
RestartS = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="SECONDS",
        help="From a failure to the first new step; default: 120.",
    ),
]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
Takeover = Annotated[
    bool,
    typer.Option(
        "--force-takeover",
        help="Take the run from the process that writes it: for one whose machine is dead.",
    ),
]


class ProcessOwner:
    """What the command line hands to its verbs where the whole process is its own, and may be
    started anew."""


def train(
    context: typer.Context,
    config: Recipe,
    words: Words = None,
    address: Address = None,
    force_takeover: Takeover = False,
    simulate_nodes: SimulateNodes = None,
) -> None:
    """Train, or resume from the last checkpoint.

    The same command resumes what it has begun, from the newest checkpoint that is whole, and says
    which it took and why. cluster, engine, checkpoint, tracking, evaluation and head.placement may
    change in between; other data, another model, head, optimiser or seed is refused with the keys
    that differ. To change those, start a new run from what the old one has learnt:

    \b
      manyfaces train CONFIG run.name=NEW run.resume_from=runs/OLD/checkpoints/step-00000500

    One process writes a run at a time: a second one is refused. What was killed on this machine is
    taken over at once; the run of a machine that is dead a minute after its last sign of life, or
    at once with --force-takeover. A process that lives all the same then stops by itself.

    Ctrl-C, SIGTERM and SIGUSR1 save a checkpoint and end the run within cluster.grace_s; Ctrl-C
    again ends it at once. The exit code is 0, 2 with one line for what a person has to mend, or 75
    for an end that was asked for.
    """
    words = list(words or ())
    if address:
        words.append(f"cluster.address={address}")
    tree, spellings = read_config(config, words)
    if isinstance(context.obj, ProcessOwner) and works_here(tree.cluster) and not has_gpus(tree):
        restart_keeping_memory()
    # Only here: a process that is started anew reads the configuration again.
    for line in spellings:
        note(line)
    from manyfaces.configs.paths import absolute
    from manyfaces.train.folder import RunFolder
    from manyfaces.train.lease import refuse_held

    if not force_takeover and not under_torchrun():
        refuse_held(RunFolder.of(absolute(tree)).path, note)  # before what takes seconds to import
    # Torch takes seconds to import, which are interrupted as well.
    with listening(tree.cluster.grace_s), contextlib.ExitStack() as nodes:
        if simulate_nodes is not None:
            from manyfaces.cluster.simulated import simulated_nodes

            cluster = nodes.enter_context(simulated_nodes(simulate_nodes, tree.cluster, note))
            tree = tree.model_copy(update={"cluster": cluster})
        from manyfaces.train.run import run

        run(tree, console, takeover=force_takeover)


def sync_mlflow(run: Run, words: Words = None) -> None:
    """Send MLflow what it lacks of a run, and how that ended.

    For a run whose server was away, or whose experiment or database was deleted, and for one that
    was killed and stands there as running. Words may name another place:

    \b
      manyfaces sync-mlflow runs/NAME tracking.experiment=other
    """
    from manyfaces.train.sync import sync_mlflow as sync

    sync(run, words or (), console)


def check(
    config: RecipeOrNot = None,
    words: Words = None,
    explain: Explain = None,
    memory_gb: MemoryGB = None,
    machine: MachineName = None,
    images_per_s: ImagesPerS = None,
    like: Like = None,
    mtbf_hours: MtbfHours = None,
    restart_seconds: RestartS = None,
) -> None:
    """Show the configuration and the plan; nothing runs.

    Ends with 2 where the run does not fit the memory of its workers. With --explain and a key such
    as `head`, `data.augment` or '' for all, no CONFIG is needed. How many steps apart checkpoints
    lose least to failures is told for the workers of the configuration: `cluster.workers=1024`.
    """
    if explain is not None:
        from manyfaces.configs.explain import describe

        for line in describe(explain):
            print(line)  # noqa: T201 - for pipes, as it is
        return
    if config is None:
        raise UserError("missing argument 'CONFIG', or --explain KEY; see manyfaces check --help")
    words = [*(words or ()), *([f"cluster.machine={machine}"] if machine else ())]
    tree = load_config(config, words)
    from manyfaces.configs.load import dump
    from manyfaces.configs.plan_report import Given, report
    from manyfaces.configs.redact import redacted
    from manyfaces.data.dataset.size import dataset_size

    print(dump(redacted(tree)))  # noqa: T201 - for pipes, as it is
    images, identities, sources = dataset_size(tree.data)
    given = Given(memory_gb, _rate(tree, images_per_s, like), mtbf_hours, restart_seconds)
    lines, short = report(tree, images, identities, given)
    for label, text in lines + sources:
        say(f"{label:32} {text}")
    if short is not None and tree.cluster.check_memory:
        raise UserError(f"does not fit: {short}; {GO_ON}")


def _rate(tree: Config, images_per_s: float | None, like: Path | None) -> MeasuredRate | None:
    """What the plan's hours go by, where it was measured."""
    if like is not None:
        from manyfaces.train.measured import rate_like

        return rate_like(tree, like)
    return None if images_per_s is None else MeasuredRate(images_per_s, "as --images-per-s says")
