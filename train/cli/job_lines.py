"""How the jobs of a cluster stand, as lines for people and as JSON for programs."""

import time
from collections.abc import Sequence
from typing import Any

from manyfaces.cluster.jobs import ENDED, Job
from manyfaces.configs.redact import redacted
from manyfaces.train.job_status import PERIOD_S, JobStatus

UNKNOWN = "-"
SILENT_S = 15 * PERIOD_S
"""A driver that has not said how it stands for so long is told."""


def state_line(job: Job, status: JobStatus | None) -> str:
    """The job's state as Ray has it, and after a colon what the run does or why the job ended."""
    if job.state in ENDED or status is None:
        first = (job.message.splitlines() or [""])[0]
        return f"{job.state}: {first}" if first else job.state
    age_s = time.time() - status.time
    late = f" (as of {_duration(age_s)} ago)" if age_s > SILENT_S else ""
    return f"{job.state}: {status.state}{late}"


def status_rows(job: Job, status: JobStatus | None) -> list[tuple[str, str]]:
    """What is known of one job: labels, and a text for each."""
    rows = [("run", job.run)]
    if status is not None:
        rows += [
            ("step", step_text(status)),
            ("loss", loss_text(status)),
            ("images/s", _number(status.images_per_s, ",.0f")),
            ("time left", UNKNOWN if job.state in ENDED else _duration(status.seconds_left)),
            ("restarts", _restarts(status)),
            ("workers", _workers(status)),
            ("checkpoint", _checkpoint(status)),
            ("folder", status.folder),
        ]
    return [*rows, ("started", clock(job.started)), ("minutes", minutes(job))]


def list_lines(found: Sequence[tuple[Job, JobStatus | None]]) -> list[str]:
    """All jobs, a line each below a line of headings; nothing is cut off, however narrow the
    terminal is."""
    rows = [("job", "state", "step", "loss", "started", "minutes", "run")]
    for job, status in found:
        step = step_text(status) if status else UNKNOWN
        loss = loss_text(status) if status else UNKNOWN
        rows.append((job.id, job.state, step, loss, clock(job.started), minutes(job), job.run))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def as_json(job: Job, status: JobStatus | None) -> dict[str, Any]:
    """The same for programs; times in seconds since 1970."""
    known = {"id": job.id, "state": job.state, "run": job.run, "message": job.message}
    told = {"started": job.started, "ended": job.ended, "status": status and vars(status)}
    return redacted({**known, **told})


def step_text(status: JobStatus) -> str:
    """The step, and how many there are."""
    return f"{_number(status.step, ',')} of {status.num_steps:,}"


def loss_text(status: JobStatus) -> str:
    """The last loss that was measured."""
    return _number(status.loss, ".3f")


def clock(seconds: float | None) -> str:
    """A moment as this machine's clock shows it."""
    return time.strftime("%m-%d %H:%M", time.localtime(seconds)) if seconds else UNKNOWN


def minutes(job: Job) -> str:
    """How long the job has run so far, or did."""
    return f"{((job.ended or time.time()) - job.started) / 60:,.1f}" if job.started else UNKNOWN


def _restarts(status: JobStatus) -> str:
    if not status.failures:
        return str(status.restarts)
    return f"{status.restarts}, of which {status.failures} after a failure"


def _workers(status: JobStatus) -> str:
    if status.workers is None:
        return UNKNOWN
    return f"{status.workers} on {', '.join(status.nodes)}" if status.nodes else str(status.workers)


def _checkpoint(status: JobStatus) -> str:
    if status.checkpoint_step is None or status.checkpoint_time is None:
        return "none yet"
    age = _duration(max(time.time() - status.checkpoint_time, 0))
    return f"step {status.checkpoint_step:,}, {age} ago"


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole / 60:.0f} min"
    return f"{whole / 3600:.1f} h"
