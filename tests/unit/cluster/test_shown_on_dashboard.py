"""What Ray shows of a run and of a job on its dashboard holds no credentials; the workers and the
job get them all the same."""

import contextlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ray._private import utils

from manyfaces.cluster import callbacks, connection, jobs, launch
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.schema import Cluster
from manyfaces.train.cli.main import main

URI = "http://user:PLANTED@host:5000"
GIVEN: list[dict[str, Any]] = []


def keep(payload: dict[str, Any]) -> None:
    GIVEN.append(payload)


def test_the_payload_is_no_configuration_of_rays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"name": "run", "config": {"tracking": {"uri": URI}}}
    cluster = Cluster(workers=1, gpus_per_worker=0)
    work = launch.Work(f"{__name__}:keep", f"{__name__}:keep", payload, Path(), lambda: False)
    trainer = launch._trainer(work, cluster, {"CPU": 1}, str(tmp_path))
    assert trainer.train_loop_config is None
    assert "PLANTED" not in repr(vars(trainer))
    monkeypatch.setattr(callbacks, "keep_output", lambda logs: None)  # it would take pytest's
    trainer.train_loop_per_worker()
    assert [payload] == GIVEN


def test_the_drivers_command_line_is_shown_without_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: f"train tracking.uri={URI}")
    with connection._redacted_command():
        assert utils.get_entrypoint_name() == "train tracking.uri=http://***@host:5000"
    assert utils.get_entrypoint_name().endswith(URI)


class Dashboard:
    """Keeps what a job was submitted with."""

    def __init__(self, address: str) -> None:
        pass

    def submit_job(self, **told: Any) -> str:
        self.told = told
        folder = Path(told["runtime_env"]["working_dir"])
        self.uri = load(folder / jobs.CONFIG).tracking.uri
        KEPT.append(self)
        return "raysubmit_1"


KEPT: list[Dashboard] = []


@contextlib.contextmanager
def no_package() -> Iterator[Path]:
    yield Path("package")


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose dashboard is `Dashboard`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Dashboard)
    monkeypatch.setattr(jobs, "package", no_package)
    monkeypatch.setattr(jobs, "ray_version", lambda address: version("ray"))
    KEPT.clear()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("tracking.uri", [f"tracking.uri={URI}"]),
        ("data.path", ["data.path=s3://KEY:PLANTED@bucket/faces"]),
        ("MLFLOW_TRACKING_URI", []),
    ],
)
def test_a_secret_is_refused_before_the_cluster_is_asked(
    where: str,
    words: list[str],
    dashboard: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if where == "MLFLOW_TRACKING_URI":
        monkeypatch.setenv(where, URI)
    assert main(["submit", "quick/arcface", f"run.dir={tmp_path}", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith(f"error: {where}: a secret stands in it, which would travel with the")
    assert "PLANTED" not in line
    assert not KEPT


def test_a_job_is_told_of_the_tracking_server_in_a_file_alone(
    dashboard: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    address = "http://user:PLANTED@127.0.0.1:8265"
    words = ["submit", "quick/arcface", f"run.dir={tmp_path}", "--no-check", "--address", address]
    assert main(words) == 0
    told = KEPT.pop()
    assert told.uri == "http://mlflow:5000"
    assert "mlflow" not in repr(told.told)
    origin = json.loads(told.told["runtime_env"]["env_vars"]["MANYFACES_ORIGIN"])
    assert {"command", "user", "host"} <= origin.keys()
    out, err = capsys.readouterr()
    assert "PLANTED" not in out + err
    assert out.splitlines()[-2:] == [
        "follow     manyfaces jobs logs raysubmit_1 --follow --address http://***@127.0.0.1:8265",
        "look       manyfaces jobs status raysubmit_1 --address http://***@127.0.0.1:8265",
    ]


def test_a_cluster_that_was_just_started_is_waited_for(
    dashboard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    asked: list[str] = []

    def submit_job(self: Dashboard, **told: Any) -> str:
        asked.append(told["entrypoint"])
        if len(asked) < 3:
            raise RuntimeError("Request failed with status code 500: No available agent to submit")
        return "raysubmit_1"

    monkeypatch.setattr(Dashboard, "submit_job", submit_job)
    assert jobs.Jobs("http://127.0.0.1:8265").submit("run", {}, 30.0, {}) == "raysubmit_1"
    assert len(asked) == 3
    monkeypatch.setattr(jobs, "AGENT_WAIT_S", -1.0)
    asked.clear()
    with pytest.raises(UserError, match="No available agent"):
        jobs.Jobs("http://127.0.0.1:8265").submit("run", {}, 30.0, {})
    assert len(asked) == 1
