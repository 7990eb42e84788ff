"""Jobs on a Ray cluster that is up: ship code and configuration, start, follow, stop. The one file
that knows ray.job_submission."""

import asyncio
import contextlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manyfaces.cluster.dashboard import TOKEN_REMEDY, ray_version, token
from manyfaces.configs.errors import UserError

CONFIG = "config.yaml"
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
STOP_WAIT_MORE_S = 5
"""Ray kills a job so long after its time of grace; its own 3 s are too short for a checkpoint."""


@contextlib.contextmanager
def package() -> Iterator[Path]:
    """A folder `manyfaces` that holds this package as a wheel would install it: Ray ships an
    unpacked wheel without reinstalling torch.

    Raises `UserError` where the wheel cannot be built.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").exists():  # installed from a wheel already
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="manyfaces-wheel-") as target:
        shutil.rmtree(
            root / "build" / "lib", ignore_errors=True
        )  # modules that are gone would travel
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            target,
            str(root),
        ]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            last = (built.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"{root}: the wheel cannot be built: {last}")
        with zipfile.ZipFile(next(Path(target).glob("*.whl"))) as archive:
            archive.extractall(target)
        yield Path(target) / "manyfaces"


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    run: str
    """The name of the run that it was submitted for."""
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """What Ray says of it besides."""
    started: float | None
    ended: float | None
    """Seconds since 1970, where the job did."""


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (http://HOST:8265).

    Raises `UserError` where none answers there, or none that this process may ask.
    """

    def __init__(self, address: str) -> None:
        self.address, self.ray_version = address, ray_version(address)
        if token() is not None:
            os.environ["RAY_AUTH_MODE"] = "token"  # or Ray would not show it
        from ray.job_submission import JobSubmissionClient

        # Ray would tell of each upload.
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client: Any = self._ask(lambda: JobSubmissionClient(address))

    def refuse_other_version(self) -> None:
        """Raise `UserError` where the cluster's Ray is of another release than this machine's,
        with which manyfaces is tested."""
        here, there = version("ray"), self.ray_version
        if here.split(".")[:2] != there.split(".")[:2]:
            raise UserError(
                f"{self.address}: the cluster runs Ray {there}, this machine has {here}; install "
                f"ray=={here} on the nodes, or {there} here"
            )

    def submit(
        self, name: str, config_yaml: str, grace_s: float, environment: Mapping[str, str]
    ) -> str:
        """Start `manyfaces train` on the cluster's head with this configuration; it has `grace_s`
        seconds to end when it is stopped, and these environment variables besides. Returns the
        job's id.

        The configuration travels as a file: what stands in the job's command or environment is
        shown on the dashboard. Raises `UserError`, as the methods below do.
        """
        stop_wait_s = math.ceil(grace_s + STOP_WAIT_MORE_S)
        with tempfile.TemporaryDirectory(prefix="manyfaces-job-") as folder, package() as code:
            (Path(folder) / CONFIG).write_text(config_yaml)
            job = self._ask(
                self._client.submit_job,
                entrypoint=f"python -m manyfaces.train train {CONFIG} --address auto",
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(code)],
                    "env_vars": {**environment, "RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)},
                },
                metadata={"run": name},
            )
            return str(job)

    def job(self, job: str) -> Job:
        """How the job stands."""
        return _job(self._ask(self._client.get_job_info, job))

    def logs(self, job: str) -> str:
        """What the job has printed so far."""
        return str(self._ask(self._client.get_job_logs, job))

    def follow(self, job: str, write: Callable[[str], object]) -> None:
        """Hand `write` what the job has printed and prints, until it ends."""

        async def follow() -> None:
            async for lines in self._client.tail_job_logs(job):
                write(lines)

        self.job(job)  # one that does not exist is told, where following would wait
        try:
            self._ask(lambda: asyncio.run(follow()))
        except UserError as error:
            raise UserError(
                f"{error}; whether {job} still runs is not known: `manyfaces jobs status` asks; "
                "where the cluster is lost, submit the same to another one, and the run goes on "
                "from its last checkpoint"
            ) from error

    def stop(self, job: str) -> bool:
        """Stop the job; returns whether there was something to stop."""
        return bool(self._ask(self._client.stop_job, job))

    def list(self) -> list[Job]:
        """Every job, newest first."""
        jobs = [_job(info) for info in self._ask(self._client.list_jobs) if info.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def _ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError

        try:
            return call(*arguments, **named)
        except AuthenticationError as error:
            raise UserError(
                f"{self.address}: the cluster wants a token, and has not got the right one; "
                f"{TOKEN_REMEDY}"
            ) from error
        except (RuntimeError, ValueError, OSError, ClientError) as error:
            if arguments and ("does not exist" in str(error) or "404" in str(error)):
                raise UserError(
                    f"{arguments[0]}: no such job at {self.address}; `manyfaces jobs list` shows "
                    "them"
                ) from error
            first = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(f"{self.address}: {first}") from error


def _job(info: Any) -> Job:
    started, ended = (time and time / 1000 for time in (info.start_time, info.end_time))
    run = (info.metadata or {}).get("run", "")
    # Ray's states are an enumeration of strings.
    state = str(getattr(info.status, "value", info.status))
    return Job(info.submission_id, run, state, info.message or "", started, ended)
