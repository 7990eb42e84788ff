"""`manyfaces submit` and `manyfaces jobs VERB ...`: jobs on a Ray cluster that is up."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact
from manyfaces.train.cli.options import Recipe, Words
from manyfaces.train.cli.output import note, read_config, say
from manyfaces.train.cli.verbs import Verbs

if TYPE_CHECKING:
    from manyfaces.cluster.jobs import Jobs

app = typer.Typer(cls=Verbs)

LAST_LINES = 10
LISTED = 30
"""Jobs of a list whose steps are asked for."""
ASKED_AT_ONCE = 8
STOP_MORE_S = 10
"""How long a job that is ended by force takes until Ray says so."""
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
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Do not look at the cluster's nodes before the job.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the job has ended.")]


def submit(
    config: Recipe, address: Address = None, no_check: NoCheck = False, words: Words = None
) -> None:
    """Start a job on a Ray cluster elsewhere.

    Code and configuration are shipped, with MLFLOW_TRACKING_URI as tracking.uri where that is not
    set; passwords are not: set those of MLflow and of stores in the environment of the cluster's
    nodes. Before anything starts, every node is asked for its versions, and whether it reads the
    dataset and writes the run's folder, which all of them have to see.
    """
    tree, spellings = read_config(config, words or ())
    from manyfaces.cluster.jobs import shipment
    from manyfaces.configs.load import dump
    from manyfaces.train.cli.submit_checks import check_nodes, refuse_secrets, with_tracking_uri
    from manyfaces.train.faults import VARIABLE, parse
    from manyfaces.train.run import absolute
    from manyfaces.train.tracking.origin import VARIABLE as ORIGIN
    from manyfaces.train.tracking.origin import shipped_origin

    refuse_secrets(tree)
    for line in spellings:
        note(line)
    faults = os.environ.get(VARIABLE, "")
    parse(faults)  # what cannot be read is told before the cluster is asked
    tree = with_tracking_uri(absolute(tree), os.environ)
    jobs = _jobs(address)
    if open_to_all := jobs.open_line():
        note(open_to_all)
    jobs.refuse_other_version()
    with shipment(dump(tree)) as shipped:
        if not no_check:
            check_nodes(jobs, shipped, tree)
        variables = {VARIABLE: faults, ORIGIN: shipped_origin()}
        job = jobs.submit(tree.run.name, shipped, tree.cluster.grace_s, variables)
    say(f"submitted  {job}")
    say(f"data       {' and '.join(tree.data.paths)}")
    say(f"run        {tree.run.dir}/{tree.run.name}")
    say(f"follow     manyfaces jobs logs {job} --follow --address {jobs.address}")
    say(f"look       manyfaces jobs status {job} --address {jobs.address}")


@app.command("status")
def status(job: JobId, address: Address = None, as_json: Json = False) -> None:
    """Show how a job stands, and the last that it printed."""
    jobs = _jobs(address)
    found = jobs.job(job)
    from manyfaces.train.cli import job_lines
    from manyfaces.train.job_status import JobStatus

    known = JobStatus.parse(jobs.status(found))
    if as_json:
        _write(json.dumps(job_lines.as_json(found, known), indent=2) + "\n")
        return
    say(job_lines.state_line(found, known))
    for label, text in job_lines.status_rows(found, known):
        say(f"{label:11}{text}")
    for line in jobs.last_lines(found, LAST_LINES):
        say(f"  {line}")


@app.command("logs")
def logs(job: JobId, address: Address = None, follow: Follow = False) -> None:
    """Show what a job printed."""
    jobs = _jobs(address)
    if follow:
        lines = _Lines()
        try:
            jobs.follow(job, lines.write)
        finally:
            lines.end()
    else:
        _write(jobs.logs(job))


@app.command("stop")
def stop(job: JobId, address: Address = None, no_wait: NoWait = False) -> None:
    """Stop a job, which saves what was trained.

    It has cluster.grace_s for that. The step that was saved is told at the end.
    """
    jobs = _jobs(address)
    if not jobs.stop(job):
        say(f"{job}: was not running")
        return
    stop_wait_s = jobs.job(job).stop_wait_s
    say(f"{job}: stopping; what was trained is saved within {stop_wait_s} s, about cluster.grace_s")
    if no_wait:
        return
    from manyfaces.cluster.jobs import ENDED
    from manyfaces.train.job_status import JobStatus

    found = jobs.wait_for_end(job, stop_wait_s + STOP_MORE_S)
    if found.state not in ENDED:
        raise UserError(
            f"{job}: {found.state} still, {stop_wait_s + STOP_MORE_S} s after it was asked to "
            f"stop; `manyfaces jobs status {job} --address {jobs.address}` shows how it goes on"
        )
    known = JobStatus.parse(jobs.status(found))
    if known is None or known.checkpoint_step is None:
        say(f"{job}: {found.state}; no checkpoint was saved")
    else:
        made = "" if known.step == known.checkpoint_step else f" of {known.step} that were made"
        say(f"{job}: {found.state}; checkpoint of step {known.checkpoint_step}{made}")
        say("the same command of `manyfaces submit` goes on from it")


@app.command("list")
def list_jobs(address: Address = None, as_json: Json = False) -> None:
    """List all jobs, the newest first."""
    jobs = _jobs(address)
    found = jobs.all()
    from manyfaces.train.cli import job_lines
    from manyfaces.train.job_status import JobStatus

    # Each status is asked for alone, and a node may be late.
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        told = list(pool.map(jobs.status, found[:LISTED]))
    asked = [(job, JobStatus.parse(text)) for job, text in zip(found, told, strict=False)]
    known = [*asked, *((job, None) for job in found[LISTED:])]
    if as_json:
        _write(json.dumps([job_lines.as_json(*each) for each in known], indent=2) + "\n")
    elif known:
        for line in job_lines.list_lines(known):
            say(line)
    else:
        say(f"{jobs.address}: no job was submitted to this cluster")


def _jobs(address: str | None) -> "Jobs":
    from manyfaces.cluster.dashboard import dashboard_address
    from manyfaces.cluster.jobs import Jobs

    return Jobs(dashboard_address(address))


class _Lines:
    """Writes whole lines of what comes in pieces, so that credentials that come in two are hidden
    too."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> None:
        lines, newline, self._rest = (self._rest + text).rpartition("\n")
        _write(lines + newline)

    def end(self) -> None:
        _write(self._rest)


def _write(text: str) -> None:
    sys.stdout.write(redact(text))
    sys.stdout.flush()
