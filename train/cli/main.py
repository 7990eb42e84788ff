"""The command line: `manyfaces VERB ...`. The verbs import what is heavy, and only when run."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from manyfaces.cluster.stop import StoppedError, exit_code
from manyfaces.configs.errors import UserError
from manyfaces.train.cli import (
    checkpoint,
    data,
    embed,
    evaluation,
    export,
    head,
    jobs,
    manifest,
    output,
    preflight,
    report,
    sweep,
    training,
)
from manyfaces.train.cli.training import ProcessOwner
from manyfaces.train.cli.verbs import Verbs, usage_line

MISTAKE, INTERRUPTED = 2, 130
"""Exit codes: something that a person has to mend; Ctrl-C."""
RESUMED = ("train", "sweep")
"""The verbs that go on where they were stopped."""

OVERVIEW = """\
manyfaces trains identity encoders on web-scale face data.

Pretrain  on this machine, or on a Ray cluster that it belongs to:
  manyfaces data convert FOLDER DATASET                  images to shards
  manyfaces check CONFIG data.path=DATASET               the configuration and what a run will cost
  manyfaces train CONFIG data.path=DATASET run.name=NAME

Resume    by the same command: it goes on from the last checkpoint of NAME. Another name may start
          from what an old run has learnt:
  manyfaces train CONFIG data.path=DATASET run.name=NEW run.resume_from=runs/OLD

Submit    the same to a Ray cluster elsewhere, and follow it:
  manyfaces submit CONFIG data.path=DATASET run.dir=RUNS --address http://HOST:8265
  manyfaces jobs logs ID --follow --address http://HOST:8265

CONFIG is a recipe: a YAML file, or one of ours, such as demo, quick/arcface or
pretrain/ms1mv3_r50. `manyfaces --help` lists all verbs, `manyfaces VERB --help` their options."""

app = typer.Typer(
    cls=Verbs,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
for verb in (
    training.train,
    training.check,
    evaluation.evaluate,
    export.export,
    export.latency,
    report.report,
    report.compare,
    embed.embed,
    embed.search,
    jobs.submit,
    training.sync_mlflow,
    preflight.preflight,
    sweep.sweep,
):
    app.command()(verb)
app.add_typer(jobs.app, name="jobs", help="Follow submitted jobs.")
app.add_typer(manifest.app, name="manifest")
app.add_typer(data.app, name="data", help="Make and check datasets.")
app.add_typer(
    checkpoint.app, name="checkpoint", help="Look at checkpoints, verify and hand them on."
)
app.add_typer(head.app, name="head", help="Look into a trained head; identities come and go.")


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    for name in ("manyfaces", "torch", "deepspeed", "ray", "nvidia-dali-cuda130"):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        output.say(f"{name} {found}")
    raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_print_versions,
        is_eager=True,
        help="Show the version, and those of what it stands on.",
    ),
]


@app.callback(invoke_without_command=True)
def overview(context: typer.Context, version: Version = False) -> None:
    """Train identity encoders on web-scale face data."""
    if context.invoked_subcommand is None:
        output.say(OVERVIEW)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the words and return the exit code: 0, 2 with one line for what a person has to mend, 75
    for a run that was asked to stop, or 130 after Ctrl-C."""
    command = typer.main.get_command(app)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        owner = ProcessOwner() if argv is None else None
        code = command.main(words, prog_name="manyfaces", standalone_mode=False, obj=owner)
    except StoppedError as error:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one tells
            output.stopped(str(error))
        return exit_code()
    except UserError as error:
        output.fail(str(error))
        return MISTAKE
    except typer.TyperException as error:
        output.fail(usage_line(error))
        return MISTAKE
    except OSError as error:  # a full disk, a folder that may not be written
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        output.fail(what)
        return MISTAKE
    if code == INTERRUPTED:
        verb = next((word for word in words if not word.startswith("-")), "")
        goes_on = "; the same command resumes from the last checkpoint" if verb in RESUMED else ""
        output.stopped(f"stopped{goes_on}")
    return int(code or 0)
