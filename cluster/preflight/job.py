"""The preflight of a cluster that this machine does not belong to: a job there asks the nodes."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from manyfaces.cluster.jobs import CONFIG, Jobs, package
from manyfaces.cluster.preflight.report import Report
from manyfaces.configs.errors import UserError

JOB_S, POLL_S = 900.0, 1.0
"""How long the job may take: its own waits add up to less."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def preflight_elsewhere(address: str, config_yaml: str | None, options: Sequence[str]) -> Report:
    """The report of `manyfaces preflight` with this configuration, if there is one, and these
    options, on the cluster whose dashboard is at `address`. Raises `UserError` where no cluster
    answers, or the job does not bring a report."""
    jobs = _Jobs(address)
    jobs.refuse_other_version()
    job = jobs.start(config_yaml, options)
    deadline = time.monotonic() + JOB_S
    while jobs.job(job).state not in _ENDED:
        if time.monotonic() > deadline:
            jobs.stop(job)
            raise UserError(
                f"{address}: the preflight's job {job} has not ended within {JOB_S:.0f} s; "
                f"`manyfaces jobs logs {job} --address {address}` shows how far it came"
            )
        time.sleep(POLL_S)
    said = jobs.logs(job)
    if (report := read_report(said)) is not None:
        return report
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else jobs.job(job).message
    raise UserError(f"{address}: the preflight's job {job} has brought no report: {last}")


def read_report(text: str) -> Report | None:
    """The report in what `manyfaces preflight --json` has printed among other lines."""
    for line in text.splitlines():
        if line.startswith('{"ok":'):
            body = json.loads(line)
            del body["ok"]
            return Report.model_validate(body)
    return None


def to_json(report: Report) -> str:
    """The report on one line."""
    return json.dumps({"ok": not report.problems, **report.model_dump(mode="json")})


class _Jobs(Jobs):
    """Starts preflights."""

    def start(self, config_yaml: str | None, options: Sequence[str]) -> str:
        """Start one on the cluster's head; returns the job's id. The configuration travels as a
        file, as that of a run does."""
        words = [] if config_yaml is None else [CONFIG]
        words += [*options, "--address", "auto", "--json"]
        with tempfile.TemporaryDirectory(prefix="manyfaces-job-") as folder, package() as code:
            (Path(folder) / CONFIG).write_text(config_yaml or "")
            job = self._ask(
                self._client.submit_job,
                entrypoint=f"python -m manyfaces.train preflight {' '.join(words)}",
                runtime_env={"working_dir": folder, "py_modules": [str(code)]},
                metadata={"run": "preflight"},
            )
            return str(job)
