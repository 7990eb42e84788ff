"""One trial of a sweep: a process `manyfaces train` of its own, followed by its record."""

import contextlib
import ctypes
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from manyfaces.cluster.stop import EXIT_CODE
from manyfaces.configs.load import dump, load_stored
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import METRICS, last_event, read_rows

POLL_S = 0.5
"""How long a look waits for the process' end: no request to stop waits longer."""
MORE_S = 15.0
"""A process ends by itself within `cluster.grace_s`; so much later it is killed."""
_PR_SET_PDEATHSIG = 1


def is_finished(folder: Path, num_steps: int) -> bool:
    """Whether the run has made all its steps, and was evaluated."""
    return bool((last_event(folder, "finished") or {}).get("step", -1) >= num_steps)


class TrialProcess:
    """Follows a run, whose process is started once what is recorded already has been told.

    `payload` has the run's `config`, its `num_steps` and `epochs`, the `metric`, the `log` that the
    process prints to, whether the trial `is_stopped` (it is told and not gone on with), and the
    `address` of the Ray cluster that has workers for it, if that is not the process itself.
    """

    def __init__(self, payload: dict[str, Any]) -> None:
        self._config = load_stored(payload["config"], "the configuration of the sweep")
        self._folder = RunFolder.of(self._config).path
        self._num_steps, self._epochs = int(payload["num_steps"]), float(payload["epochs"])
        self._metric, self._is_stopped = str(payload["metric"]), bool(payload["is_stopped"])
        self._log, self._address = Path(payload["log"]), payload.get("address")
        self._told_step = -1
        self._log_begin = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._files = contextlib.ExitStack()

    def poll(self) -> dict[str, Any]:
        """The next value of the metric with its epoch; `done` and `ended` at the end, with the
        `fault` that ended it, or ""; nothing where there is nothing new. Returns soon."""
        code = self._process.poll() if self._process is not None else None
        # The last value is told once the process has ended: nothing stops it then.
        ended = self._process is None or code is not None
        for row in read_rows(self._folder / METRICS):
            is_new = row["step"] > self._told_step and self._metric in row
            if is_new and (ended or row["step"] < self._num_steps):
                self._told_step = row["step"]
                epoch = row["step"] / self._num_steps * self._epochs
                return {"epoch": epoch, self._metric: row[self._metric]}
        if is_finished(self._folder, self._num_steps) and ended:
            return {"done": True, "ended": True, "fault": ""}
        if code is not None:
            return {"done": True, "ended": True, "fault": self._fault(code)}
        if self._process is None and self._is_stopped:
            return {"done": True, "ended": True, "fault": "", "is_stopped": True}
        if self._process is None:
            self._start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert self._process is not None
            self._process.wait(POLL_S)
        return {}

    def stop(self) -> None:
        """Ask the process to save and end, and wait until it has."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._config.cluster.grace_s + MORE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._files.close()

    def _start(self) -> None:
        # The configuration may hold credentials, which no command line shows.
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory()))
        recipe = folder / "config.yaml"
        recipe.write_text(dump(self._config))
        command = [sys.executable, "-m", "manyfaces.train", "train", str(recipe)]
        if self._address is not None:
            command += ["--address", self._address]
        log: IO[bytes] = self._files.enter_context(self._log.open("ab"))
        self._log_begin = log.tell()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_take_signals,
        )

    def _fault(self, code: int) -> str:
        """Why the process has ended, in a line."""
        lines = self._log.read_bytes()[self._log_begin :].decode(errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code == EXIT_CODE:
            return "it was asked to stop"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}; {self._log} has what it printed"
        return told[-1] if told else f"ended with {code}; {self._log} has what it printed"


def _take_signals() -> None:
    """In the new process, before the command: the kernel asks it to stop when its parent is gone,
    however that ended, and signals reach it, which processes of Ray's may hold back."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
