"""What Ray shows of a run and of a job on its dashboard holds no credentials; the workers and the
job get them all the same."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ray._private import utils

from manyfaces.cluster import callbacks, connection, jobs, launch
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


@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_a_job_is_told_of_credentials_in_a_file_alone(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Dashboard)
    monkeypatch.setattr(jobs, "package", no_package)
    monkeypatch.setattr(jobs, "ray_version", lambda address: version("ray"))
    words = [f"run.dir={tmp_path}", "data.path=s3://KEY:PLANTED@bucket/faces"]
    if where == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    else:
        words.append(f"tracking.uri={URI}")
    address = "http://user:PLANTED@127.0.0.1:8265"
    assert main(["submit", "quick/arcface", *words, "--address", address]) == 0
    dashboard = KEPT.pop()
    assert "PLANTED" not in repr(dashboard.told)
    assert dashboard.uri == URI
    out, err = capsys.readouterr()
    assert "PLANTED" not in out + err
    assert "s3://***@bucket/faces" in out
    assert err.count("better kept in the environment") == 1
