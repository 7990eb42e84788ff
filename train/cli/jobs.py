"""`manyfaces submit` and `manyfaces jobs VERB ...`: jobs on a Ray cluster that is up."""

import sys
from typing import Annotated

import typer

from manyfaces.train.cli.options import Recipe, Words
from manyfaces.train.cli.output import load_config, say
from manyfaces.train.cli.verbs import Verbs

app = typer.Typer(cls=Verbs)

DASHBOARD = "http://127.0.0.1:8265"
Job = Annotated[str, typer.Argument(metavar="ID", help="What `manyfaces submit` printed.")]
Dashboard = Annotated[str, typer.Option(metavar="URL", help="The cluster's dashboard.")]
Address = Annotated[
    str, typer.Option(metavar="URL", help="The cluster's dashboard, http://HOST:8265.")
]


def submit(config: Recipe, address: Address, words: Words = None) -> None:
    """Start a job on a Ray cluster elsewhere.

    Code and configuration are shipped; the data has to be where every node sees it.
    """
    tree = load_config(config, words or ())
    from manyfaces.cluster.jobs import Jobs
    from manyfaces.configs.load import dump
    from manyfaces.train.run import absolute

    tree = absolute(tree)
    say(
        f"every node must see run.dir {tree.run.dir} and the data in "
        f"{' and '.join(tree.data.paths)}"
    )
    say(Jobs(address).submit(tree.run.name, dump(tree)))


@app.command("status")
def status(job: Job, address: Dashboard = DASHBOARD) -> None:
    """Show how a job stands."""
    from manyfaces.cluster.jobs import Jobs

    say(Jobs(address).status(job))


@app.command("logs")
def logs(job: Job, address: Dashboard = DASHBOARD) -> None:
    """Show what a job printed."""
    from manyfaces.cluster.jobs import Jobs

    sys.stdout.write(Jobs(address).logs(job))


@app.command("stop")
def stop(job: Job, address: Dashboard = DASHBOARD) -> None:
    """Stop a job."""
    from manyfaces.cluster.jobs import Jobs

    stopped = Jobs(address).stop(job)
    say(f"{job}: {'stopping' if stopped else 'was not running'}")


@app.command("list")
def list_jobs(address: Dashboard = DASHBOARD) -> None:
    """List all jobs."""
    from manyfaces.cluster.jobs import Jobs

    for job, state, name in Jobs(address).list():
        say(f"{job}  {state:10} {name}")
