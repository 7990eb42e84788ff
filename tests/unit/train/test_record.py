"""The run's own record, its mirror in MLflow through a server that comes and goes, and the
watchdog."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from manyfaces.configs.identity import flatten
from manyfaces.configs.schema import Config
from manyfaces.train.record import METRICS, Record, last_event, read_rows
from manyfaces.train.tracking import RUN_FILE, Mirror


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
    assert history(folder, "pairs/accuracy") == [(7, 0.9)]
    assert params(folder)["data.augment.0.kind"] == "flip"


def test_a_server_that_is_away_costs_nothing_and_is_caught_up(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    record = Record(folder)
    record.metrics(1, **{"train/loss": 1.0})
    away = config.model_copy(
        update={"tracking": config.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})}
    )
    problem = Mirror(folder, away, {}, period_s=0.1).close("FINISHED", timeout_s=20)
    assert "127.0.0.1:9" in problem
    record.metrics(2, **{"train/loss": 2.0})
    assert mirror_once(folder, config) == ""
    assert history(folder) == [(1, 1.0), (2, 2.0)]


def test_only_the_warnings_of_mlflow_are_silenced(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "_send", lambda mirror: warnings.warn("of another", stacklevel=1))
    assert "UserWarning: of another" in mirror_once(tmp_path, config)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.event("start", "began")
    record.event("finished", "done")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "fini')
    assert last_event(tmp_path, "finished", "stopped")["message"] == "done"
    assert last_event(tmp_path, "stopped") is None


def test_the_watchdog_names_rank_and_phase_and_ends_the_process(tmp_path: Path) -> None:
    program = (
        "import time; from manyfaces.train.watchdog import Watchdog\n"
        "w = Watchdog(0.4, print, 3)\n"
        "for _ in range(10): w.phase('step'); time.sleep(0.1)\n"
        "w.phase('stuck'); time.sleep(30)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=25, check=False
    )
    assert ended.returncode == 75
    assert "rank 3 has been in 'stuck'" in ended.stdout
    assert "Thread" in ended.stderr
