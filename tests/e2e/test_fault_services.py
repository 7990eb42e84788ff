"""What a run survives of the services that it uses, a store, MLflow and the clock: the run ends bit for
bit as if nothing had been, every sample of each epoch trained on once."""

import getpass
import json
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil
import pytest
import torch
from commands import TIMEOUT_S, forked, rows, started, wait_until
from fault_runs import (
    ALONE,
    STEPS,
    check_as_if_nothing_had_happened,
    check_same_end,
    check_samples,
    fault_recipe,
    fired,
    live,
    losses,
    messages,
    resumed,
)
from mlflow_server import MlflowServer
from store_server import Proxy, upload

from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.synthetic.dataset import synthesise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lone_twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one rank that nothing happens to."""
    folder = tmp_path_factory.mktemp("lone")
    live(1, fault_recipe(folder, dataset_path))
    return folder / "runs" / "run"


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Path:
    return fault_recipe(tmp_path, dataset_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


def test_row_07_a_store_that_is_slow_torn_and_gone(proxy: Proxy, tmp_path: Path, run: Path) -> None:
    """One shard in the cache at a time, and a fault at each other fetch; then nothing but faults
    for longer than the patience."""
    made = synthesise(tmp_path / "made", 20, 6, seed=7, processes=1, shard_images=32)
    data = {
        "path": upload(proxy, tmp_path / "made", "faces", "matrix"),
        "order": {"kind": "shuffle", "window_shards": 1},
        "cache_dir": str(tmp_path / "cache"),
        "cache_gb": 2.5 * max(shard.bytes for shard in made.shards) / 1e9,
        "store_patience_s": 6,
    }
    calm = fault_recipe(tmp_path / "calm", tmp_path, data=data)
    live(1, calm)
    config = fault_recipe(tmp_path, tmp_path, data={**data, "cache_dir": str(tmp_path / "other")})
    hurt = ["cut off", "", 503, "", "reset", "", "slow", ""]
    proxy.faults["shard-"] = [*hurt, *[503] * 10_000]
    live(1, config)
    (told,) = messages(run, "stopped")
    assert "s3://faces/matrix/shard-0000" in told
    assert "(data.store_patience_s)" in told
    proxy.forget()
    proxy.faults["shard-"] = [*hurt]
    live(1, config)
    lost_at = resumed(run)[1]
    assert 0 < lost_at < STEPS
    assert "checkpoint" in [row["kind"] for row in rows(run / "events.jsonl")][:-1]
    check_same_end(run, tmp_path / "calm" / "runs" / "run")
    check_samples(config, run)


CLOCK = """
import sys, time
from pathlib import Path
run, real = Path(sys.argv[1]), time.time
def jumped():
    if not (run / "events.jsonl").exists():
        return real()
    return real() + (-3600 if (run / "checkpoints" / "step-00000010").exists() else 3600)
time.time = jumped
from manyfaces.train.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.filterwarnings("ignore")  # MLflow's store warns of its own database layer
def test_the_clock_jumps_an_hour_forward_and_back(config: Path, run: Path, lone_twin: Path) -> None:
    from mlflow import MlflowClient

    words = [sys.executable, "-c", CLOCK, str(run), "train", str(config), *ALONE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    times = [row["time"] for row in rows(run / "metrics.jsonl")]
    assert times != sorted(times)
    known = json.loads((run / "mlflow.json").read_text())
    history = MlflowClient(known["uri"]).get_metric_history(known["run_id"], "train/loss")
    assert {each.step: each.value for each in history} == losses(run)
    check_as_if_nothing_had_happened(config, lone_twin, [])


def check_what_is_told(client: Any, found: Any, dataset: Dataset) -> None:
    """A run that was started once has MLflow know all that a person looks for there."""
    run_id, experiment = found.info.run_id, found.info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{run_id}'"
    [attempt] = client.search_runs([experiment], below)
    assert attempt.info.status == "FINISHED"
    assert found.data.tags["mlflow.user"] == getpass.getuser()
    assert found.data.tags["manyfaces.restarts"] == "0"
    assert found.data.tags["manyfaces.version.torch"] == torch.__version__
    use = [name for name in found.data.metrics if name.startswith(f"system/{gethostname()}/")]
    assert f"system/{gethostname()}/cpu_utilization_percentage" in use
    [data] = found.inputs.dataset_inputs
    assert data.dataset.digest == dataset.manifest.fingerprint[:36]
    checkpoints = client.list_artifacts(run_id, "checkpoints")
    assert len(checkpoints) == 5
    [version] = client.search_model_versions("name = 'faces'")
    assert version.run_id == run_id


def is_stopped(process: subprocess.Popen[str]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


@pytest.mark.filterwarnings("ignore")  # MLflow's client warns of its own
def test_row_14_mlflow_goes_away_and_comes_back(
    config: Path,
    run: Path,
    lone_twin: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run goes on, and the server has each step once: by the end, or by what the command then
    tells."""
    from mlflow import MlflowClient

    faults = [f"stop@rank=0,step={step}" for step in (4, 12, 20)]
    monkeypatch.setenv("MANYFACES_FAULTS", ";".join(faults))
    server = MlflowServer(tmp_path)
    try:
        server.start()
        server.wait(TIMEOUT_S)
        words = [f"tracking.uri={server.uri}", "tracking.register_as=faces"]
        with started("train", config, *ALONE, *words) as process:
            wait_until(lambda: is_stopped(process), process)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: len(fired(run)) == 2 and is_stopped(process), process)
            server.kill()
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: len(fired(run)) == 3 and is_stopped(process), process)
            server.start()
            server.wait(TIMEOUT_S)
            process.send_signal(signal.SIGCONT)
            text = " ".join(process.communicate(timeout=TIMEOUT_S)[0].split())
            assert process.returncode == 0, text
        if "MLflow does not" in text:  # the server was too slow at the end, which is told
            assert "`manyfaces sync-mlflow" in text
            wait_until(lambda: forked("sync-mlflow", run).returncode == 0)
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("manyfaces").experiment_id
        (found,) = client.search_runs([experiment], "tags.`manyfaces.run` != ''")
        history = client.get_metric_history(found.info.run_id, "train/loss")
        assert {each.step: each.value for each in history} == losses(run)
        assert len(history) == STEPS
        assert found.info.status == "FINISHED"
        check_what_is_told(client, found, dataset)
    finally:
        server.kill()
    away = messages(run, "checkpoint")
    assert [told[-2:] for told in away] == ["05", "10", "15", "20", "24"]
    check_as_if_nothing_had_happened(config, lone_twin, faults)
