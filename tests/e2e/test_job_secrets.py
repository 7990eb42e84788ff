"""Secrets of the cluster and of who submits, in a job on Ray: they stand in no log, no artifact, no
runtime environment and on no screen."""

import json
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from commands import manyfaces, recipe, rows, wait_until
from ray_nodes import ray_cluster

pytestmark = pytest.mark.slow

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "PLANTED-mlflow",
    "AWS_SECRET_ACCESS_KEY": "PLANTED-store",
    "HF_TOKEN": "PLANTED-hub",
}
SHOWN = (
    "/api/jobs/",
    "/api/v0/runtime_envs",
    "/api/v0/actors?detail=1",
    "/api/v0/workers?detail=1",
)


def holding(folder: Path) -> list[Path]:
    """The files below the folder in whose names or bytes a secret stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if "PLANTED" in str(path) or b"PLANTED" in path.read_bytes()]


def test_planted_secrets_are_left_nowhere(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    config = recipe(tmp_path, dataset_path, train={"epochs": 4000}, cluster={"workers": 1})
    run = tmp_path / "runs" / "run"
    said: list[str] = []

    def say(*words: object) -> str:
        done = manyfaces(*words, "--address", address)
        said.append(done.stdout + done.stderr)
        return said[-1]

    with ray_cluster(monkeypatch, num_cpus=1) as (nodes, address):
        session = Path(nodes.head_node.get_session_dir_path())
        for key, value in {
            "tracking.uri": "http://user:PLANTED@127.0.0.1:1",
            "data.path": "https://127.0.0.1:1/faces?X-Amz-Signature=PLANTED",
        }.items():
            assert f"error: {key}: a secret stands in it" in say("submit", config, f"{key}={value}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:PLANTED@127.0.0.1:1")
        assert "error: MLFLOW_TRACKING_URI: a secret stands in it" in say("submit", config)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert json.loads(say("jobs", "list", "--json")) == []

        job = re.findall(r"raysubmit_\w+", say("submit", config))[0]
        wait_until(lambda: any("train/loss" in row for row in rows(run / "metrics.jsonl")))
        for words in (["status", job], ["status", job, "--json"], ["list"], ["stop", job]):
            say("jobs", *words)
        say("jobs", "logs", job)
        for path in SHOWN:
            with urlopen(address + path, timeout=30) as answer:
                said.append(answer.read().decode())
        assert list(session.glob("runtime_resources/working_dir_files/*/config.yaml"))
        assert list(session.glob(f"logs/*{job}*"))
        kept = holding(session)
    assert "checkpoint of step" in "".join(said)
    assert [text for text in said if "PLANTED" in text] == []
    assert [str(path) for path in kept] == []
    assert holding(tmp_path) == []
    assert list((run / "checkpoints").glob("step-????????"))
