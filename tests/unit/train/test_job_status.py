"""How a run stands, read from a record that is written line by line, and handed to a cluster."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manyfaces.cluster import status_file
from manyfaces.cluster.jobs import Job
from manyfaces.configs.load import load
from manyfaces.train.cli.job_lines import state_line, status_rows
from manyfaces.train.folder import RunFolder
from manyfaces.train.job_report import StatusReader, told_to_cluster
from manyfaces.train.job_status import JobStatus
from manyfaces.train.record import Record


def reader_of(tmp_path: Path) -> tuple[Record, StatusReader]:
    config = load("demo", [f"run.dir={tmp_path}", "run.name=run", "train.batch_size=16"])
    folder = RunFolder.of(config)
    record = Record(folder.path)
    record.event("start", "an earlier job", world_size=4, step=0)
    record.metrics(7, **{"train/loss": 9.0, "images_per_s": 50.0})
    record.event("checkpoint", "checkpoint x", step=5)
    return record, StatusReader(config, folder, 100)


def shown(status: JobStatus, state: str = "RUNNING") -> dict[str, str]:
    job = Job("raysubmit_x", "run", state, "", 1.0, None)
    return {"state": state_line(job, status), **dict(status_rows(job, status))}


def measure(record: Record, step: int) -> None:
    record.metrics(step, **{"train/loss": 10.0 - step / 10, "images_per_s": 80.0})


def test_a_run_is_followed_through_a_restart_to_its_stop(tmp_path: Path) -> None:
    record, reader = reader_of(tmp_path)
    status = reader.read()
    assert (status.state, status.step, status.restarts) == ("starting", 7, 0)
    assert status.checkpoint_step == 5

    record.event("start", "2 workers", world_size=2, step=5)
    status = reader.read()
    assert (status.state, status.step, status.workers) == ("starting", 5, 2)
    measure(record, 6)
    record.metrics(6, other=1.0)  # a row that measures something else
    status = reader.read()
    assert (status.state, status.step, status.loss) == ("training", 6, 9.4)
    assert status.seconds_left == pytest.approx(94 * 16 / 80)

    record.event("worker_failed", "rank 1 died", rank=1, step=6)
    assert reader.read().state == "restarting"
    record.event("start", "2 workers", world_size=2, step=5)
    status = reader.read()
    assert (status.step, status.restarts, status.failures) == (5, 1, 1)
    rows = shown(status)
    assert (rows["state"], rows["step"]) == ("RUNNING: starting", "5 of 100")
    assert rows["restarts"] == "1, of which 1 after a failure"
    assert re.fullmatch(r"step 5, \d+ s ago", rows["checkpoint"])
    measure(record, 8)
    record.event("stopping", "SIGTERM")
    assert reader.read().state == "stopping"
    record.event("checkpoint", "checkpoint y", step=8)
    record.event("interrupted", "stopped by SIGTERM")
    status = reader.read()
    assert (status.state, status.step, status.checkpoint_step) == ("stopped", 8, 8)
    assert status.folder == str(tmp_path / "run")


def test_a_run_of_which_nothing_is_known_yet(tmp_path: Path) -> None:
    config = load("demo", [f"run.dir={tmp_path}", "run.name=new"])
    status = StatusReader(config, RunFolder.of(config), 12_000).read()
    rows = shown(status)
    assert rows["step"] == "- of 12,000"
    assert {rows[name] for name in ("loss", "images/s", "time left", "workers")} == {"-"}
    assert rows["checkpoint"] == "none yet"
    late = dataclasses.replace(status, time=status.time - 300)
    assert shown(late)["state"] == "RUNNING: starting (as of 5 min ago)"


def test_the_newest_row_is_found_behind_many(tmp_path: Path) -> None:
    record, reader = reader_of(tmp_path)
    record.event("start", "", world_size=1, step=0)
    row = {"step": 1, "time": 1.0, "train/loss": 1.0, "images_per_s": 1.0}
    with (record.folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, "step": step}) + "\n" for step in range(1500))
    measure(record, 1500)
    assert reader.read().step == 1500


def test_a_driver_leaves_it_beside_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    monkeypatch.setattr("manyfaces.train.job_report.status_path", lambda: path)
    record, reader = reader_of(tmp_path)
    config = load("demo", [f"run.dir={tmp_path}", "run.name=run"])
    with told_to_cluster(config, reader.folder, 100):
        record.event("start", "", world_size=1, step=7)
        measure(record, 9)
    status = JobStatus.parse(path.read_text())
    assert status is not None
    assert (status.step, status.num_steps, status.nodes) == (9, 100, ())
    assert JobStatus.parse(None) is JobStatus.parse("{") is JobStatus.parse("[]") is None
    assert [file.name for file in tmp_path.iterdir() if "status" in file.name] == [path.name]


def test_only_a_jobs_driver_has_a_place_for_it(tmp_path: Path) -> None:
    told = json.dumps({"metadata": {"job_submission_id": "raysubmit_x"}})
    code = "from manyfaces.cluster.status_file import status_path as p; print(p())"
    for name, expected in (
        ("job-driver-raysubmit_x.log", f"{tmp_path / status_file.status_name('raysubmit_x')}"),
        ("other.log", "None"),
    ):
        with (tmp_path / name).open("w") as log:
            environment = {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": told}
            command = [sys.executable, "-c", code]
            subprocess.run(command, stdout=log, env=environment, check=True, timeout=60)
        assert (tmp_path / name).read_text().strip() == expected
    assert status_file.status_path() is None
