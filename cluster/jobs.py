"""Jobs on a Ray cluster that is up: ship code and configuration, start, follow, stop. The one file
that knows ray.job_submission."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manyfaces.configs.errors import UserError

CONFIG = "config.yaml"
STOP_WAIT_S = 30  # for the driver after SIGTERM; Ray's 3 s are too short for anything


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


class Jobs:
    """The jobs of the cluster whose dashboard is at `address` (http://HOST:8265)."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            self._client: Any = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"{address}: no Ray dashboard answers there ({str(error).splitlines()[0]})"
            ) from error

    def submit(self, name: str, config_yaml: str) -> str:
        """Start `manyfaces train` on the cluster's head with this configuration; returns the job's
        id."""
        tracking = {
            name: os.environ[name] for name in ("MLFLOW_TRACKING_URI",) if name in os.environ
        }
        with tempfile.TemporaryDirectory(prefix="manyfaces-job-") as folder, package() as code:
            (Path(folder) / CONFIG).write_text(config_yaml)
            job = self._client.submit_job(
                entrypoint=f"python -m manyfaces.train train {CONFIG} --address auto",
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(code)],
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **tracking},
                },
                metadata={"run": name},
            )
            return str(job)

    def status(self, job: str) -> str:
        """How the job stands: one word, and Ray's message where it has one. Raises `UserError`."""
        info = self._ask(self._client.get_job_info, job)
        return f"{info.status}: {info.message}" if info.message else str(info.status)

    def logs(self, job: str) -> str:
        """What the job has printed so far. Raises `UserError`."""
        return str(self._ask(self._client.get_job_logs, job))

    def stop(self, job: str) -> bool:
        """Stop the job; returns whether there was something to stop. Raises `UserError`."""
        return bool(self._ask(self._client.stop_job, job))

    def list(self) -> Iterator[tuple[str, str, str]]:
        """(id, status, run name) of every job, newest first."""
        for info in sorted(self._client.list_jobs(), key=lambda i: i.start_time or 0, reverse=True):
            if info.submission_id:
                yield info.submission_id, str(info.status), (info.metadata or {}).get("run", "")

    def _ask(self, call: Any, job: str) -> Any:
        try:
            return call(job)
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise UserError(
                    f"{job}: no such job at {self.address}; `manyfaces jobs list` shows them"
                ) from error
            raise UserError(f"{self.address}: {str(error).splitlines()[0]}") from error
