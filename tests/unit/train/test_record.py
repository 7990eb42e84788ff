"""The run's own record, its mirror in MLflow through a server that comes and goes, and the
watchdog."""

import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from made_head import named_dataset

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.schema import Config
from manyfaces.train.claim import claim, refuse_lost
from manyfaces.train.folder import RUN_FILE, RunFolder
from manyfaces.train.record import METRICS, Record, last_event, read_rows
from manyfaces.train.tracking.mirror import Mirror
from manyfaces.train.tracking.place import mlflow_run
from manyfaces.train.watchdog import Watchdog


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(tmp_path), "name": "r"},
            "model": {"kind": "vit"},
            "data": {"augment": ["flip"]},
        }
    )


def history(folder: Path, key: str = "train/loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    known = json.loads((folder / RUN_FILE).read_text())
    return [
        (m.step, m.value)
        for m in MlflowClient(known["uri"]).get_metric_history(known["run_id"], key)
    ]


def params(folder: Path) -> dict[str, str]:
    from mlflow import MlflowClient

    known = json.loads((folder / RUN_FILE).read_text())
    return dict(MlflowClient(known["uri"]).get_run(known["run_id"]).data.params)


def mirror_once(folder: Path, config: Config) -> str:
    flat = flatten(config.model_dump())
    return Mirror(folder, config, flat, period_s=0.1).close("FINISHED", [folder / METRICS])


def test_rewound_metrics_are_measured_again_but_sent_once(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    record = Record(folder)
    for step in range(1, 6):
        record.metrics(step, **{"train/loss": float(step)})
    assert mirror_once(folder, config) == ""
    first = (folder / RUN_FILE).read_text()
    # A kill, and a resume from step 3.
    record.rewind(3)
    assert [row["step"] for row in read_rows(folder / METRICS)] == [1, 2, 3]
    for step in range(4, 8):
        record.metrics(step, **{"train/loss": float(step)})
    record.metrics(7, **{"pairs/accuracy": 0.9})
    assert mirror_once(folder, config) == ""
    assert (folder / RUN_FILE).read_text() == first
    assert history(folder) == [(s, float(s)) for s in range(1, 8)]
    assert history(folder, "eval/pairs/accuracy") == [(7, 0.9)]
    assert params(folder)["data.augment.0.kind"] == "flip"


def test_a_server_that_is_away_costs_nothing_and_is_caught_up(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    record = Record(folder)
    record.metrics(1, **{"train/loss": 1.0})
    away = config.model_copy(
        update={
            "tracking": config.tracking.model_copy(update={"uri": "http://u:PLANTED@127.0.0.1:9"})
        }
    )
    problem = Mirror(folder, away, {}, period_s=0.1).close("FINISHED", timeout_s=20)
    assert problem.startswith("http://***@127.0.0.1:9: ")
    assert "PLANTED" not in problem
    record.metrics(2, **{"train/loss": 2.0})
    assert mirror_once(folder, config) == ""
    assert history(folder) == [(1, 1.0), (2, 2.0)]


def test_only_the_warnings_of_mlflow_are_silenced(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "_send", lambda *_: warnings.warn("of another", stacklevel=1))
    assert "UserWarning: of another" in mirror_once(tmp_path, config)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.event("start", "began")
    record.event("finished", "done")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "fini')
    assert last_event(tmp_path, "finished", "stopped")["message"] == "done"
    assert last_event(tmp_path, "stopped") is None


def test_words_of_earlier_sessions_are_told_apart_without_a_clock(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.event("stopped", "before")
    assert last_event(tmp_path, "stopped", behind=1) is None
    record.event("start", "again")
    record.event("finished", "done")
    found = last_event(tmp_path, "stopped", "finished", behind=1)
    assert found is not None
    assert found["message"] == "done"


def test_an_event_after_a_torn_line_is_not_swallowed(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for name in ("events.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_text('{"kind": "fini')
    record.event("finished", "done", step=7)
    record.metrics(7, loss=1.0)
    assert last_event(tmp_path, "finished") is not None
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [7]
    record.event("stopped", "x")
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 3


STRANGE = [
    b"7",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b'{"time": 1.0}',
    b'{"time": 1.0, "step": "x", "kind": 3, "message": 1}',
    b'{"time": 1.0, "step": 3, "loss": "x"}',
    b'{"time": "x", "step": 3, "kind": "start", "message": "m"}',
    b'{"time": 1.0, "kind": "start", "message": "m", "table": {"columns": 1, "rows": []}}',
    b'{"time": 1.0, "kind": "start", "message": "m", "table": 5}',
]


@pytest.mark.parametrize("line", STRANGE)
def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path, line: bytes) -> None:
    record = Record(tmp_path)
    for name in ("events.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_bytes(line + b"\n")
    record.event("finished", "done")
    record.metrics(2, loss=1.0)
    record.metrics(3, loss=1.0)
    record.rewind(2)
    assert [row["step"] for row in read_rows(tmp_path / METRICS)] == [2]
    assert [row["kind"] for row in read_rows(tmp_path / "events.jsonl")] == ["finished"]


@pytest.mark.parametrize("body", [b"", b"7", b"[]", b"\xff", b'{"uri": "x"}', b'{"run_id": 3}'])
def test_a_file_that_names_no_mlflow_run_is_passed_over(tmp_path: Path, body: bytes) -> None:
    (tmp_path / RUN_FILE).write_bytes(body)
    assert mlflow_run(tmp_path) is None


@pytest.mark.parametrize(
    "body", [b"", b"7", b"[]", b"\xff", b"{}", b'{"format": 2, "config": {}, "digests": 5}']
)
def test_a_run_whose_identity_cannot_be_read_is_one_line(
    config: Config, tmp_path: Path, body: bytes
) -> None:
    folder = RunFolder.of(config)
    folder.path.mkdir()
    folder.identity.write_bytes(body)
    with pytest.raises(UserError, match=r"^[^\n]*run\.json: [^\n]*$"):
        claim(config, named_dataset(tmp_path / "data", 3), folder)


def test_a_run_whose_checkpoints_are_gone_does_not_start_afresh(
    config: Config, tmp_path: Path
) -> None:
    folder = RunFolder.of(config)
    record = Record(folder.path)
    record.event("start", "began")
    record.metrics(3, loss=1.0)
    refuse_lost(folder)  # killed before its first checkpoint
    record.event("checkpoint", "checkpoint", step=32)
    (folder.checkpoints / "step-00000040.tmp-ab12").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"no checkpoint is there, .* of step 32 was; .* move .* away, or give"
    ):
        refuse_lost(folder)
    (folder.checkpoints / "step-00000032").mkdir()
    refuse_lost(folder)  # whether it is whole is told where it is read


def test_the_watchdog_names_rank_and_phase_and_ends_the_process(tmp_path: Path) -> None:
    program = (
        "import time; from manyfaces.train.watchdog import Watchdog\n"
        "w = Watchdog(0.4, lambda line: print(line, flush=True), 3)\n"
        "w.phase('stuck'); time.sleep(200)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 75
    assert "rank 3 has been in 'stuck'" in ended.stdout
    assert "Thread" in ended.stderr


class Server:
    """What the mirror asks of MLflow's client."""

    uris: ClassVar[list[str]] = []

    def __init__(self, uri: str) -> None:
        self.uris.append(uri)

    def get_run(self, run_id: str) -> Any:
        info = SimpleNamespace(run_id=run_id, experiment_id="1", lifecycle_stage="active")
        data = SimpleNamespace(params={}, to_proto=lambda: SimpleNamespace(metrics=[]))
        return SimpleNamespace(info=info, data=data)

    def get_experiment(self, experiment_id: str) -> Any:
        return SimpleNamespace(experiment_id=experiment_id, tags={})

    def list_artifacts(self, *_: str) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_with_a_new_password_the_same_mlflow_run_goes_on_and_none_is_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.MlflowClient", Server)
    tracking = config.tracking.model_copy(update={"uri": "http://u:PLANTED2@h"})
    told = {"uri": "http://u:PLANTED1@h", "run_id": "r1"}  # as earlier versions wrote it
    (tmp_path / RUN_FILE).write_text(json.dumps(told))
    assert mirror_once(tmp_path, config.model_copy(update={"tracking": tracking})) == ""
    assert Server.uris == ["http://u:PLANTED2@h"]
    known = mlflow_run(tmp_path)
    assert known is not None
    assert (known["uri"], known["run_id"]) == ("http://***@h", "r1")


LATE = """
import os, signal, sys, time
from pathlib import Path
from manyfaces.train import watchdog as module
from manyfaces.train.heartbeat import read_heartbeats
rank, run = int(sys.argv[1]), Path(sys.argv[2])
module.PERIOD_S = 0.3
tell = lambda line: print(line, flush=True)
watchdog = module.Watchdog(60 if rank == 1 else 1.2, tell, rank, 2, run)
watchdog.made(11)
watchdog.phase("data")
if rank == 1:
    while 1 not in (beats := read_heartbeats(run)) or beats[1].phase != "data":
        time.sleep(0.01)
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
watchdog.phase("step 12")
time.sleep(200)
"""


def test_the_watchdog_spares_who_moves_on_while_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    twice = threading.Event()

    def moves_on(dog: Watchdog, since: float) -> None:
        told.append(since)
        dog.phase(f"step {len(told)}")
        if len(told) == 2:
            dog.close()
            twice.set()

    def end(code: int) -> None:
        pytest.fail("it was ended")

    monkeypatch.setattr(Watchdog, "_tell_who", moves_on)
    monkeypatch.setattr("manyfaces.train.watchdog.os._exit", end)
    Watchdog(0.2, print, 0)
    assert twice.wait(60)


def test_the_watchdog_names_the_rank_that_did_not_arrive(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LATE]
    late = subprocess.Popen([*command, "1", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert late.stdout is not None
        assert late.stdout.readline() == "stopping\n"
        waits = subprocess.run(
            [*command, "0", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        late.kill()
        late.communicate()
    assert waits.returncode == 75
    told = waits.stdout.splitlines()[-1]
    assert told.startswith("rank 1 on ")
    assert (
        "has not arrived and gives no sign of life: its last was in 'data', after step 11" in told
    )
    assert "rank 0 has been in 'step 12' for more than 1 s (cluster.step_timeout_s)" in told
