"""The preflight of a cluster that this machine does not belong to: a job there asks the nodes."""

import json
from collections.abc import Sequence

from manyfaces.cluster.jobs import CONFIG, ENDED, Jobs, shipment
from manyfaces.cluster.preflight.report import Report
from manyfaces.configs.errors import UserError

JOB_S = 1800.0
"""How long the job may take: its own waits add up to less."""


def preflight_elsewhere(address: str, config_yaml: str | None, options: Sequence[str]) -> Report:
    """The report of `manyfaces preflight` with this configuration, if there is one, and these
    options, on the cluster whose dashboard is at `address`. Raises `UserError` where no cluster
    answers, or the job does not bring a report."""
    jobs = Jobs(address)
    jobs.refuse_other_version()
    words = ["python", "-m", "manyfaces.train", "preflight"]
    words += [] if config_yaml is None else [CONFIG]
    with shipment(config_yaml or "") as shipped:
        ended, lines = jobs.run_aside(
            [*words, *options, "--address", "auto", "--json"], shipped, JOB_S
        )
    if (report := read_report("\n".join(lines))) is not None:
        return report
    if ended.state not in ENDED:
        raise UserError(
            f"{address}: the preflight's job {ended.id} has not ended within {JOB_S:.0f} s; "
            f"`manyfaces jobs logs {ended.id} --address {address}` shows how far it came"
        )
    said = [line for line in lines if line.strip()]
    last = said[-1].strip() if said else ended.message
    raise UserError(f"{address}: the preflight's job {ended.id} has brought no report: {last}")


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
