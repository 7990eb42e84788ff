"""Jobs on a Ray cluster that is up: ship code and configuration, start, follow, stop. The one file
that knows ray.job_submission."""

import asyncio
import contextlib
import json
import logging
import math
import os
import re
import shlex
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manyfaces.cluster.dashboard import TOKEN_REMEDY, open_line, ray_version, read_log, token
from manyfaces.cluster.manifests.nodes import TRAIN
from manyfaces.cluster.manifests.own_wheel import own_wheel, sources
from manyfaces.cluster.probe import MARK
from manyfaces.cluster.status_file import status_name
from manyfaces.cluster.versions import talk_together
from manyfaces.configs.errors import UserError

CONFIG = "config.yaml"
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_MORE_S = 5
"""Ray kills a job so long after its time of grace; its own 3 s are too short for a checkpoint."""
PROBE = "manyfaces-check-"
"""How the id of a probe's job begins, which is shown in no list of ours. It is not deleted: Ray may
bring back a job that has just ended, as one that has failed."""
PROBE_WAIT_S, NODE_WAIT_S = 120, 60
"""Longest time that a probe takes in all, and until all nodes have answered it."""
POLL_S = 0.25
AGENT_WAIT_S, NO_AGENT = 30.0, "No available agent"
"""How long a cluster may have no agent for a job, and what it says meanwhile."""
SILENCE_S = 15.0
"""After so long without a line of a job that is followed the cluster is asked for an answer."""
MISSES = 3
"""So many times in a row it may give no answer; a head that is busy is late once."""
ANSWER_S, UPLOAD_S = 60.0, 300.0
"""Longest waits for an answer of the dashboard, and for each step of an upload to it."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@contextlib.contextmanager
def package() -> Iterator[Path]:
    """A folder `manyfaces` that holds this package as a wheel would install it: Ray ships an
    unpacked wheel without reinstalling torch.

    Raises `UserError` where the wheel cannot be built.
    """
    if sources() is None:  # installed from a wheel already
        yield Path(__file__).resolve().parents[1]
        return
    with tempfile.TemporaryDirectory(prefix="manyfaces-wheel-") as target:
        with zipfile.ZipFile(own_wheel(Path(target))) as archive:
            archive.extractall(target)
        yield Path(target) / "manyfaces"


@contextlib.contextmanager
def shipment(config_yaml: str) -> Iterator[dict[str, Any]]:
    """The runtime environment of a job while the block runs: the code, and this configuration as
    the file CONFIG, since what stands in a job's command or environment is shown on the dashboard.
    Raises `UserError` as `package` does."""
    with tempfile.TemporaryDirectory(prefix="manyfaces-job-") as folder, package() as code:
        (Path(folder) / CONFIG).write_text(config_yaml)
        # A node that has not installed manyfaces finds its version and its needs there.
        facts = sorted(code.parent.glob("manyfaces-*.dist-info"))
        yield {"working_dir": folder, "py_modules": [str(each) for each in (code, *facts)]}


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
    node: str | None = None
    """The id of the node that its driver runs on."""
    stop_wait_s: int = 3
    """How long it has to end when it is stopped."""


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
        self._client: Any = self._ask(lambda: _with_timeouts(JobSubmissionClient)(address))

    def open_line(self) -> str | None:
        """What a person is warned of where anyone may submit jobs from another machine."""
        return open_line(self.address)

    def refuse_other_version(self) -> None:
        """Raise `UserError` where the cluster's Ray is of another release than this machine's,
        with which manyfaces is tested."""
        here, there = version("ray"), self.ray_version
        if not talk_together(here, there):
            raise UserError(
                f"{self.address}: the cluster runs Ray {there}, this machine has {here}; install "
                f"ray=={here} on the nodes, or {there} here"
            )

    def probe(self, shipped: Mapping[str, Any], checks: str, names: Sequence[str]) -> Any:
        """What a short job finds on every node of the cluster with this shipment: the answer of
        `manyfaces.cluster.probe`. `checks` is the module of its checks, `names` are those of the
        distributions whose versions are wanted. Raises `UserError`, also where no answer comes."""
        words = ["python", "-m", "manyfaces.cluster.probe", checks, CONFIG, str(NODE_WAIT_S)]
        ended, lines = self.run_aside([*words, *names], shipped, PROBE_WAIT_S)
        answers = [line for line in lines if line.startswith(MARK)]
        if answers:
            return json.loads(answers[-1].removeprefix(MARK))
        told = (lines or ended.message.splitlines() or ["it printed nothing"])[-1].strip()
        if ended.state not in ENDED:
            told = f"no answer within {PROBE_WAIT_S} s: {told}"
        raise UserError(
            f"{self.address}: the cluster's nodes could not be looked at ({told}); mend that, or "
            "submit with --no-check"
        )

    def run_aside(
        self, words: Sequence[str], shipped: Mapping[str, Any], wait_s: float
    ) -> tuple[Job, list[str]]:
        """Run this command on the cluster's head with this shipment, as a job that no list of ours
        shows: how it stood at its end, or after so many seconds, and what it had printed. One that
        has not ended by then is stopped. Raises `UserError`, as the methods below do."""
        job = self._start(
            entrypoint=shlex.join(words),
            runtime_env=dict(shipped),
            submission_id=f"{PROBE}{uuid.uuid4().hex[:12]}",
        )
        try:
            ended = self.wait_for_end(job, wait_s)
            lines = self.logs(job).splitlines()
        except BaseException:
            with contextlib.suppress(UserError):
                self.stop(job)
            raise
        if ended.state not in ENDED:
            self.stop(job)
        return ended, lines

    def submit(
        self,
        name: str,
        shipped: Mapping[str, Any],
        grace_s: float,
        environment: Mapping[str, str],
    ) -> str:
        """Start `manyfaces train` on the cluster's head with this shipment; it has `grace_s`
        seconds to end when it is stopped, and these environment variables besides. Returns the
        job's id. Raises `UserError`, as the methods below do."""
        variables = {**environment, STOP_WAIT: str(math.ceil(grace_s + STOP_WAIT_MORE_S))}
        return self._start(
            entrypoint=f"{TRAIN} {CONFIG} --address auto",
            runtime_env={**shipped, "env_vars": variables},
            metadata={"run": name},
        )

    def _start(self, **told: Any) -> str:
        """Start a job, once the cluster has an agent that takes it: a head that was just started
        has none yet. Returns its id."""
        deadline = time.monotonic() + AGENT_WAIT_S
        while True:
            try:
                return str(self._ask(self._client.submit_job, **told))
            except UserError as error:
                if NO_AGENT not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    def job(self, job: str) -> Job:
        """How the job stands."""
        return _job(self._ask(self._client.get_job_info, job))

    def logs(self, job: str) -> str:
        """What the job has printed so far."""
        return str(self._ask(self._client.get_job_logs, job))

    def last_lines(self, job: Job, number: int) -> list[str]:
        """The last that the job has printed."""
        told = self._file(job, f"job-driver-{job.id}.log", number)
        lines = (self.logs(job.id) if told is None else told).splitlines()
        return lines[-number:]

    def status(self, job: Job) -> str | None:
        """What the job's driver has written into its status file; None where it has not."""
        return self._file(job, status_name(job.id))

    def _file(self, job: Job, name: str, lines: int = -1) -> str | None:
        return read_log(self.address, job.node, name, lines) if job.node else None

    def follow(self, job: str, write: Callable[[str], object]) -> None:
        """Hand `write` what the job has printed and prints, until it ends."""

        self.job(job)  # one that does not exist is told, where following would wait
        try:
            self._ask(lambda: asyncio.run(self._follow(job, write)))
        except UserError as error:
            raise UserError(
                f"{error}; whether {job} still runs is not known: `manyfaces jobs status` asks; "
                "where the cluster is lost, submit the same to another one, and the run goes on "
                "from its last checkpoint"
            ) from error

    async def _follow(self, job: str, write: Callable[[str], object]) -> None:
        """Ray waits for the next lines without end, also of a head that is gone: after each
        silence the dashboard is asked whether it is there."""
        lines = aiter(self._client.tail_job_logs(job))
        waiting, misses = asyncio.ensure_future(anext(lines)), 0
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=SILENCE_S)
                if done:
                    write(waiting.result())
                    waiting, misses = asyncio.ensure_future(anext(lines)), 0
                    continue
                try:
                    await asyncio.to_thread(ray_version, self.address)
                    misses = 0
                except UserError:
                    misses += 1
                    if misses == MISSES:
                        raise
        except StopAsyncIteration:
            return
        finally:
            waiting.cancel()

    def stop(self, job: str) -> bool:
        """Stop the job; returns whether there was something to stop."""
        return bool(self._ask(self._client.stop_job, job))

    def wait_for_end(self, job: str, seconds: float) -> Job:
        """How the job stands once it has ended, or this time is over."""
        deadline = time.monotonic() + seconds
        while (found := self.job(job)).state not in ENDED and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def all(self) -> list[Job]:
        """Every job, newest first."""
        known = [info for info in self._ask(self._client.list_jobs) if info.submission_id]
        jobs = [_job(info) for info in known if not info.submission_id.startswith(PROBE)]
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
            if arguments and re.search("does not exist|status code 404", str(error)):
                raise UserError(
                    f"{arguments[0]}: no such job at {self.address}; `manyfaces jobs list` shows "
                    "them"
                ) from error
            first = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(f"{self.address}: {first}") from error


def _with_timeouts(client: Any) -> Any:
    """This class of Ray's, whose own requests wait without end for a head that does not answer."""

    class Client(client):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            wait_s = UPLOAD_S if method == "PUT" else ANSWER_S
            return super()._do_request(method, endpoint, **{"timeout": wait_s, **options})

    return Client


def _job(info: Any) -> Job:
    started, ended = (time and time / 1000 for time in (info.start_time, info.end_time))
    run = (info.metadata or {}).get("run", "")
    # Ray's states are an enumeration of strings.
    state = str(getattr(info.status, "value", info.status))
    variables = (info.runtime_env or {}).get("env_vars", {})
    stop_wait_s = int(variables.get(STOP_WAIT, 3))
    return Job(
        info.submission_id,
        run,
        state,
        info.message or "",
        started,
        ended,
        info.driver_node_id,
        stop_wait_s,
    )
