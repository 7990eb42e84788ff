"""The file in which a job's driver says how its work stands: beside the job's log on the node that
it runs on, where Ray's dashboard reads it for whoever asks. Neither the folder of a run nor the
cluster's own network has to be seen from there."""

import json
import os
from pathlib import Path


def status_name(job: str) -> str:
    """The file's name in the folder of Ray's logs."""
    return f"manyfaces-{job}.json"


def status_path() -> Path | None:
    """The file of the job whose driver this process is; None for a process that is none."""
    try:
        job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
        # Ray documents this name; the folder of its session has another one at each start.
        log = Path("/proc/self/fd/1").readlink()
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return log.with_name(status_name(job)) if log.name == f"job-driver-{job}.log" else None
