"""MLflow as a mirror of the run's own record, off the step's path.

A thread of the process that launched the run reads what the record has and sends what the server
lacks. A server that is away costs the run nothing: the record catches up, in this session or a
later one, without doubles. What was deleted there is restored or made anew.
"""

import contextlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from manyfaces.configs import schema
from manyfaces.configs.redact import redact
from manyfaces.train.checkpoint.layout import folder_name, newest_step
from manyfaces.train.folder import RunFolder
from manyfaces.train.metric_names import is_evaluation, shown_name
from manyfaces.train.record import EVENTS, METRICS, last_event, read_rows
from manyfaces.train.tracking.attempts import attempts
from manyfaces.train.tracking.inputs import known_datasets
from manyfaces.train.tracking.model import export_model
from manyfaces.train.tracking.place import tracking_uri
from manyfaces.train.tracking.server import Measured, Server
from manyfaces.train.tracking.system import FOLDER as SYSTEM
from manyfaces.train.tracking.tags import attempt_tags, run_tags
from manyfaces.train.tracking.tail import Tail

Status = Literal["FINISHED", "FAILED", "KILLED"]
CLOSE_S, MODEL_S = 60.0, 600.0
"""Longest wait for the server at the end, and with a model or checkpoints to send."""
CHECKPOINTS = "checkpoints"
"""The folder of artifacts that tells of checkpoints."""

_MEND = "give another tracking.uri or tracking.experiment"
FINAL = {
    "RESOURCE_DOES_NOT_EXIST": _MEND,
    "RESOURCE_ALREADY_EXISTS": _MEND,
    "INVALID_PARAMETER_VALUE": _MEND,
    "INVALID_STATE": _MEND,
    "BAD_REQUEST": _MEND,
    "NOT_FOUND": _MEND,
    "ENDPOINT_NOT_FOUND": "give the tracking.uri of an MLflow server",
    "NOT_IMPLEMENTED": "give the tracking.uri of a newer MLflow server",
    "PERMISSION_DENIED": "ask for the right to write there, or " + _MEND,
    "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
}
"""Refusals of MLflow's that no second try changes, by their code, and what does."""
GONE = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_STATE", "INVALID_PARAMETER_VALUE"}
"""Those that tell of a run or an experiment that was deleted: the run is looked for again. A
deleted run that is written to is a parameter that is not valid."""


def last_status(folder: Path) -> Status:
    """How the run in this folder stands, once no process writes it: one that says nothing of its
    end was killed."""
    last = last_event(folder, "start", "finished", "stopped", "worker_failed")
    by_kind: dict[str, Status] = {
        "finished": "FINISHED",
        "stopped": "FAILED",
        "worker_failed": "FAILED",
    }
    return by_kind.get(last["kind"], "KILLED") if last else "KILLED"


class Mirror:
    """Mirrors one run into MLflow; the same MLflow run is continued when the run is resumed.

    `draw` makes the run's plots; it is called after each evaluation, in a thread.
    """

    def __init__(
        self,
        folder: Path,
        config: schema.Config,
        params: dict[str, Any],
        period_s: float = 5.0,
        draw: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.config, self.params, self.period_s = folder, config, params, period_s
        self.draw = draw
        self.uri = tracking_uri(config)
        self.problem = ""
        """Why the server does not have everything, and what helps; "" when it does."""
        self.notes: list[str] = []
        """What was found deleted and what was done about it, and plots that were not drawn."""
        self._server: Server | None = None
        self._run_id = ""
        """The MLflow run that what was sent is of."""
        self._tails: dict[Path, Tail] = {}
        self._events: list[dict[str, Any]] = []
        self._known_events = len(read_rows(folder / EVENTS))
        """Events of earlier sessions."""
        self._sent: dict[object, object] = {}
        """What the server has got from this process, by what it is, to know changes."""
        self._there: set[str] | None = None
        """The checkpoints that the server knew before."""
        self._refusals: list[Exception] = []
        """Those of this period."""
        self._refused: dict[object, Exception] = {}
        """Why the server does not have what it refused for good, by what it is."""
        self._is_drawn = True
        """Whether the plots show the last evaluation."""
        # What MLflow's modules warn of is about themselves. Filters belong to the whole process, so
        # the thread must not change them while others work.
        warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)\b")
        self._ended, self._abandoned = threading.Event(), threading.Event()
        self._outcome: tuple[Status, list[Path]] = ("FAILED", [])
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def close(
        self, status: Status, artifacts: Iterable[Path] = (), timeout_s: float | None = None
    ) -> str:
        """Send the rest, the artifacts and the status; returns `problem`. Waits no longer than
        `timeout_s`, by default a minute, or ten where a model or checkpoints are to be sent."""
        if timeout_s is None:
            is_large = self._registers(status) or self.config.tracking.checkpoint_files
            timeout_s = MODEL_S if is_large else CLOSE_S
        self._outcome = (status, list(artifacts))
        self._ended.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.problem = redact(
                f"no answer from {self.uri} in {timeout_s:.0f} s; {self._later()}"
            )
        return self.problem

    def abandon(self) -> None:
        """Send nothing more: the run is another process's."""
        self._abandoned.set()
        self._ended.set()

    def _follow(self) -> None:
        # Few retries here: the next period tries again anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        while True:
            ended = self._ended.wait(self.period_s)
            if self._abandoned.is_set():
                return
            was_connected = self._server is not None
            if not self._try(ended) and self._server is None and was_connected and ended:
                self._try(ended)  # what was deleted meanwhile is made anew
            if ended:
                return

    def _try(self, ended: bool) -> bool:
        """Send what there is; whatever a server or its client raises must not reach the run."""
        try:
            try:
                self._send(ended)
            finally:
                # One metric that is refused must not leave the run without its end.
                if ended and self._server is not None and not self._abandoned.is_set():
                    self._finish(self._server)
        except Exception as error:
            line = str(error).splitlines()[0] if str(error) else ""
            told = f"{self.uri}: {type(error).__name__}: {line}"
            self.problem = f"{redact(told)}; {self._remedy(error)}"
            return False
        self.problem = ""
        return True

    def _remedy(self, error: Exception) -> str:
        code = getattr(error, "error_code", "")
        final = FINAL.get(code)
        if final is None:
            return self._later()
        if code in GONE:
            self._server = None  # the next period finds out whether the run is there
        return f"that is final: {final}; then {self._later()}"

    def _later(self) -> str:
        return f"`manyfaces sync-mlflow {self.folder}` sends the rest"

    def _note(self, line: str) -> None:
        if (told := redact(line)) not in self.notes:
            self.notes.append(told)

    def _send(self, ended: bool) -> None:
        server = self._connected()
        server.params(self.params)
        with self._going_on():
            self._send_metrics(server)
        self._send_events(server)
        self._draw()
        self._send_files(server, RunFolder(self.folder).artifacts)
        if not ended:
            self._send_checkpoints(server)
        self._raise_refusal()

    def _connected(self) -> Server:
        """The run on the server; where it is another one than before, everything is sent to it."""
        if self._server is None:
            server = Server(self.folder, self.config, self.uri, self._note)
            if server.run_id != self._run_id:
                self._tails, self._events, self._there = {}, [], None
                self._sent, self._refused = {}, {}
            self._server, self._run_id = server, server.run_id
        return self._server

    def _finish(self, server: Server) -> None:
        """Send artifacts, how the attempts ended, the status, and then what may take long:
        checkpoints and the model. What is refused keeps none of the others."""
        status, artifacts = self._outcome
        try:
            self._send_events(server, ended=True)
            self._send_files(server, artifacts)
        finally:
            server.end(status, self._events[-1]["time"] if self._events else None)
        self._send_checkpoints(server)
        if self._registers(status):
            self._send_model(server)
        self._raise_refusal()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What is refused for good in the block is raised by `_raise_refusal`, once the rest is
        sent. A file that is gone is no fault."""
        try:
            yield
        except FileNotFoundError:
            pass
        except Exception as error:
            if getattr(error, "error_code", "") not in FINAL:
                raise
            self._refusals.append(error)

    def _raise_refusal(self) -> None:
        refusals, self._refusals = [*self._refusals, *self._refused.values()], []
        if refusals:
            raise refusals[0]

    def _once(self, what: object, value: object, send: Callable[[], None]) -> None:
        """Send what is not on the server as this value, going on where it is refused. What was
        refused for good is not sent again until its value changes."""
        if self._abandoned.is_set() or self._sent.get(what) == value:
            return
        with self._going_on():
            try:
                send()
                self._refused.pop(what, None)
            except Exception as error:
                code = getattr(error, "error_code", "")
                if code not in FINAL or code in GONE:
                    raise
                self._refused[what] = error
            self._sent[what] = value

    def _new_rows(self, path: Path) -> Iterator[list[dict[str, Any]]]:
        """What has come in this file of the record, in parts: each is taken once the next one is
        asked for."""
        tail = self._tails.setdefault(path, Tail(path))
        while True:
            yield tail.rows()
            if not tail.take():
                return

    def _send_metrics(self, server: Server) -> None:
        """Send the numbers of the run, and those of its nodes."""
        for rows in self._new_rows(self.folder / METRICS):
            server.metrics(_measured(rows, ""))
            if any(is_evaluation(name) for row in rows for name in row):
                self._is_drawn = False
        for path in sorted((self.folder / SYSTEM).glob("*.jsonl")):
            for rows in self._new_rows(path):
                server.metrics(_measured(rows, f"{SYSTEM}/{path.stem}/"))

    def _send_events(self, server: Server, *, ended: bool = False) -> None:
        """Send what the events tell: where the run comes from, what it reads and on what it runs,
        and its attempts. With `ended` none of its attempts runs any more."""
        for rows in self._new_rows(self.folder / EVENTS):
            self._events += rows
        found = attempts(self._events, len(self._events) if ended else self._known_events)
        for newest in found[-1:]:
            tags, datasets = run_tags(found), known_datasets(newest.start.get("datasets"))
            self._once("tags", tags, partial(server.tags, tags))
            if datasets:
                self._once("datasets", datasets, partial(server.datasets, datasets))
        for each in found:
            self._once(each.started, each, partial(server.attempt, each, attempt_tags(each)))

    def _draw(self) -> None:
        """Draw what was evaluated since. Plots that cannot be drawn keep nothing else back."""
        if self._is_drawn:
            return
        self._is_drawn = True
        try:
            self.draw()
        except Exception as error:
            self._note(f"the plots were not drawn: {error}")

    def _send_checkpoints(self, server: Server) -> None:
        """Send where each checkpoint is and what tells it by, and its files where that is asked
        for; what an earlier session has sent stays as it is."""

        def look() -> None:
            self._there = server.names(CHECKPOINTS)

        self._once(CHECKPOINTS, True, look)
        known, last = self._there or set(), ""
        for number, event in enumerate(self._events):
            if event["kind"] != "checkpoint" or "step" not in event:
                continue
            name = folder_name(event["step"])
            last = _path(event)
            if number >= self._known_events or f"{name}.json" not in known:
                self._once(name, event["time"], partial(self._send_checkpoint, server, event))
        if last:
            tag = {"manyfaces.checkpoint": last}
            self._once("checkpoint", last, partial(server.tags, tag))

    def _send_checkpoint(self, server: Server, event: Mapping[str, Any]) -> None:
        name, path = folder_name(event["step"]), Path(_path(event))
        if self.config.tracking.checkpoint_files and path.is_dir():
            server.file(path, f"{CHECKPOINTS}/{name}")
        told = {key: event[key] for key in event if key not in ("kind", "message")}
        server.json({**told, "path": str(path)}, f"{CHECKPOINTS}/{name}.json")

    def _send_files(self, server: Server, paths: Sequence[Path]) -> None:
        """Send those that have changed since they were sent."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                folder = path.parent.relative_to(self.folder).as_posix().strip(".") or None
                state = found.st_mtime_ns, found.st_size
                self._once(path, state, partial(server.file, path, folder))

    def _registers(self, status: Status) -> bool:
        return status == "FINISHED" and self.config.tracking.register_as is not None

    def _send_model(self, server: Server) -> None:
        """Log and register the backbone of the newest checkpoint, unless that is done."""
        folder, name = RunFolder(self.folder).checkpoints, self.config.tracking.register_as
        step = newest_step(folder)
        if step is None or name is None or server.has_model(step, name):
            return
        with tempfile.TemporaryDirectory(prefix="manyfaces-model-") as scratch, self._going_on():
            server.model(export_model(folder / folder_name(step), Path(scratch)), name)


def _path(event: Mapping[str, Any]) -> str:
    """Where the checkpoint of this event is; earlier versions had it in the message alone."""
    return str(event.get("path") or event["message"].removeprefix("checkpoint "))


def _measured(rows: Iterable[Mapping[str, Any]], prefix: str) -> Iterator[Measured]:
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time"):
                yield shown_name(f"{prefix}{name}"), value, row["time"], row["step"]
