"""`manyfaces submit` and `manyfaces jobs VERB ...`: jobs on a Ray cluster that is up."""

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.configs.redact import redact
from manyfaces.train.cli.options import Recipe, Words
from manyfaces.train.cli.output import console, load_config, say
from manyfaces.train.cli.verbs import Verbs

if TYPE_CHECKING:
    from manyfaces.cluster.jobs import Job, Jobs
    from manyfaces.configs.schema import Config

app = typer.Typer(cls=Verbs)

LAST_LINES = 10
JobId = Annotated[str, typer.Argument(metavar="ID", help="What `manyfaces submit` printed.")]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine's.",
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on until the job ends; Ctrl-C leaves it alone.")
]


def submit(config: Recipe, address: Address = None, words: Words = None) -> None:
    """Start a job on a Ray cluster elsewhere.

    Code and configuration are shipped, with MLFLOW_TRACKING_URI as tracking.uri where that is not
    set; the data has to be where every node sees it. Passwords of MLflow and of stores are best set
    in the environment of the cluster's nodes.
    """
    tree = load_config(config, words or ())
    from manyfaces.configs.load import dump
    from manyfaces.train.faults import VARIABLE, parse
    from manyfaces.train.run import absolute

    faults = os.environ.get(VARIABLE, "")
    parse(faults)  # what cannot be read is told before the cluster is asked
    tree = _with_tracking_uri(absolute(tree))
    jobs = _jobs(address)
    jobs.refuse_other_version()
    job = jobs.submit(tree.run.name, dump(tree), tree.cluster.grace_s, {VARIABLE: faults})
    say(f"submitted  {job}")
    say(f"data       {' and '.join(tree.data.paths)}: every node has to see it")
    say(f"run        {tree.run.dir}/{tree.run.name}: every node has to see it")
    say(f"follow     manyfaces jobs logs {job} --follow --address {jobs.address}")
    say(f"look       manyfaces jobs status {job} --address {jobs.address}")


def _with_tracking_uri(tree: "Config") -> "Config":
    """The same with the MLflow server that this environment names, if the configuration names
    none."""
    uri = tree.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return tree.model_copy(update={"tracking": tree.tracking.model_copy(update={"uri": uri})})


@app.command("status")
def status(job: JobId, address: Address = None) -> None:
    """Show how a job stands, and the last that it printed."""
    jobs = _jobs(address)
    found = jobs.job(job)
    say(f"{found.state}: {found.message}" if found.message else found.state)
    say(f"run        {found.run}")
    say(f"started    {_clock(found.started)}")
    say(f"minutes    {_minutes(found)}")
    for line in jobs.logs(job).splitlines()[-LAST_LINES:]:
        say(f"  {line}")


@app.command("logs")
def logs(job: JobId, address: Address = None, follow: Follow = False) -> None:
    """Show what a job printed."""
    jobs = _jobs(address)
    if follow:
        jobs.follow(job, _write)
    else:
        _write(jobs.logs(job))


@app.command("stop")
def stop(job: JobId, address: Address = None) -> None:
    """Stop a job."""
    stopped = _jobs(address).stop(job)
    say(f"{job}: {'stopping' if stopped else 'was not running'}")


@app.command("list")
def list_jobs(address: Address = None) -> None:
    """List all jobs, the newest first."""
    from rich.table import Column, Table
    from rich.text import Text

    jobs = _jobs(address)
    found = jobs.list()
    if not found:
        say(f"{jobs.address}: no job was submitted to this cluster")
        return
    table = Table(Column("job", no_wrap=True), "state", "run", "started", "minutes")
    for job in found:
        table.add_row(*map(Text, (job.id, job.state, job.run, _clock(job.started), _minutes(job))))
    console.print(table)


def _jobs(address: str | None) -> "Jobs":
    from manyfaces.cluster.dashboard import dashboard_address
    from manyfaces.cluster.jobs import Jobs

    return Jobs(dashboard_address(address))


def _write(text: str) -> None:
    sys.stdout.write(redact(text))
    sys.stdout.flush()


def _clock(seconds: float | None) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


def _minutes(job: "Job") -> str:
    """How long the job has run so far, or did."""
    return f"{((job.ended or time.time()) - job.started) / 60:,.1f}" if job.started else "-"
