"""What a run survives, a fault a test: the fault is injected, the person reads one line, and the
run ends bit for bit as if it had not been, every sample of each epoch trained on once."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest
from commands import TIMEOUT_S, forked, kill_tree, rows, started, wait_until
from fault_runs import (
    STEPS,
    check_as_if_nothing_had_happened,
    check_same_end,
    check_samples,
    die,
    fault_recipe,
    fired,
    live,
    losses,
    messages,
)
from store_server import Proxy, upload

from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.synthetic.dataset import synthesise

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
]
ALONE = ["cluster.launcher=process", "cluster.workers=1"]
"""One process, which a person can see, stop and kill."""


@pytest.fixture(scope="module")
def twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing happens to."""
    folder = tmp_path_factory.mktemp("twin")
    config = fault_recipe(folder, dataset_path)
    live(2, config)
    check_samples(config, folder / "runs" / "run")
    return folder / "runs" / "run"


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


def resumed(run: Path) -> list[int]:
    """The step that each launch began after."""
    return [row["step"] for row in rows(run / "events.jsonl") if row["kind"] == "start"]


def command(config: Path, *words: object) -> list[str]:
    return [*TORCHRUN, "-m", "manyfaces.train", "train", str(config), *map(str, words)]


@pytest.mark.slow
def test_row_01_a_worker_is_killed(config: Path, run: Path, twin: Path) -> None:
    die(2, config, "kill@rank=1,step=7")
    live(2, config)
    assert resumed(run) == [0, 5]
    assert "resuming step-00000005 at sample 100" in messages(run, "start")[1]
    check_as_if_nothing_had_happened(config, twin, ["kill@rank=1,step=7"])


@pytest.mark.slow
def test_row_01_torchrun_starts_the_workers_again(
    config: Path, run: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = ["kill@rank=1,step=7", "kill@rank=0,step=13,phase=data"]
    monkeypatch.setenv("MANYFACES_FAULTS", ";".join(faults))
    done = subprocess.run(command(config), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert resumed(run) == [0, 5, 10]
    assert "rank 1 in 'step 7': kill@rank=1,step=7 (MANYFACES_FAULTS)" in done.stdout
    assert "2 workers on cpu: resuming step-00000010 at sample 200" in done.stdout
    check_as_if_nothing_had_happened(config, twin, faults)


@pytest.mark.slow
def test_row_04_a_corrupt_image(dataset_path: Path, tmp_path: Path, run: Path) -> None:
    broken = Path(shutil.copytree(dataset_path, tmp_path / "broken"))
    with tarfile.open(broken / "shard-000001.tar") as shard:
        member = next(each for each in shard if each.name.endswith(".jpg"))
        place, key = member.offset_data, member.name.removesuffix(".jpg")
    with (broken / "shard-000001.tar").open("rb+") as file:
        file.seek(place)
        file.write(b"\0" * (member.size // 2))
    names = [open_dataset(broken).name(sample) for sample in range(120)]
    (sample,) = [number for number, name in enumerate(names) if name.endswith(f"{key}.jpg")]
    sections = {"data": {"max_bad_share": 0.05}}
    calm = fault_recipe(tmp_path / "calm", broken, **sections)
    live(2, calm)
    config = fault_recipe(tmp_path, broken, **sections)
    die(2, config, "kill@rank=0,step=13")
    live(2, config)
    assert fired(run) == ["kill@rank=0,step=13"]
    (line,) = messages(run, "quarantine")
    assert key in line
    assert len(rows(run / "quarantine.jsonl")) == 1
    check_same_end(run, tmp_path / "calm" / "runs" / "run")
    check_samples(config, run, left_out=[sample])


@pytest.mark.slow
def test_row_06_a_shard_is_missing_when_the_run_goes_on(
    dataset_path: Path, tmp_path: Path, run: Path, twin: Path
) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    config = fault_recipe(tmp_path, copy)
    die(2, config, "kill@rank=1,step=7")
    (copy / "shard-000002.tar").rename(tmp_path / "away.tar")
    live(2, config)
    (told,) = messages(run, "stopped")
    assert "shard-000002.tar" in told
    (tmp_path / "away.tar").rename(copy / "shard-000002.tar")
    live(2, config)
    check_as_if_nothing_had_happened(config, twin, ["kill@rank=1,step=7"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_row_08_the_disk_is_full_for_one_rank(config: Path, run: Path, twin: Path) -> None:
    faults = [
        "enospc@rank=1,step=10,phase=checkpoint:rows",
        f"enospc@rank=0,step={STEPS},phase=checkpoint:commit",
    ]
    live(2, config, ";".join(faults))
    (told,) = messages(run, "checkpoint_failed")
    assert re.fullmatch(
        r"checkpoint of step 10 FAILED \(rank 1: disk full: needs .* MB, free .* MB, at .*\), "
        "training goes on; the last good checkpoint is step-00000005",
        told,
    )
    (told,) = messages(run, "stopped")
    assert "the last of the run; the last good checkpoint is step-00000020; free some" in told
    live(2, config)
    assert resumed(run) == [0, 20]
    check_as_if_nothing_had_happened(config, twin, faults)


@pytest.mark.slow
def test_row_09_killed_while_a_checkpoint_is_written(config: Path, run: Path, twin: Path) -> None:
    """At each moment of a write: what is not committed is not there, and what is, is whole."""
    faults = [
        "kill@rank=1,step=5,phase=checkpoint:rows",
        "kill@rank=1,step=10,phase=checkpoint:written",
        "kill@rank=0,step=15,phase=checkpoint:commit",
        "kill@rank=0,step=20,phase=checkpoint:rename",
        "kill@rank=0,step=24,phase=checkpoint:after",
    ]
    for _ in faults:
        die(2, config, ";".join(faults))
    live(2, config)
    assert resumed(run) == [0, 0, 5, 10, 15, 24]
    assert "passed over step-00000020.tmp-" in messages(run, "start")[4]
    assert "(not committed)" in messages(run, "start")[4]
    names = [path.name for path in (run / "checkpoints").iterdir()]
    assert not [name for name in names if "." in name], "what was cut off is removed"
    check_as_if_nothing_had_happened(config, twin, faults)


@pytest.mark.slow
def test_row_10_the_newest_checkpoint_is_corrupt(config: Path, run: Path, twin: Path) -> None:
    die(2, config, "kill@rank=0,step=12")
    file = max((run / "checkpoints" / "step-00000010" / "head").iterdir())
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    live(2, config)
    assert resumed(run) == [0, 5]
    told = messages(run, "start")[1]
    assert f"passed over step-00000010 (head/{file.name}: digest differs)" in told
    check_as_if_nothing_had_happened(config, twin, ["kill@rank=0,step=12"])


@pytest.mark.slow
def test_row_11_other_numbers_of_ranks(config: Path, run: Path) -> None:
    die(2, config, "kill@rank=1,step=7")
    die(3, config, "kill@rank=2,step=13")
    live(1, config)
    assert fired(run) == ["kill@rank=1,step=7", "kill@rank=2,step=13"]
    assert resumed(run) == [0, 5, 10]
    assert [told.split(":")[0] for told in messages(run, "start")] == [
        "2 workers on cpu",
        "3 workers on cpu",
        "1 worker on cpu",
    ]
    assert len(losses(run)) == STEPS
    check_samples(config, run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_row_13_a_hung_rank_is_named_and_replaced(
    config: Path, run: Path, twin: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = f"stop@rank={rank},step=7"
    monkeypatch.setenv("MANYFACES_FAULTS", fault)
    words = command(config, "cluster.step_timeout_s=90", "data.store_patience_s=40")
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = messages(run, "hung")
    assert re.match(
        rf"rank {rank} on \S+ has not arrived and gives no sign of life: its last was in '\w+( \d)?'",
        told,
    )
    assert f"rank {1 - rank} has been in 'step 7' for more than 90 s" in told
    assert resumed(run) == [0, 5]
    check_as_if_nothing_had_happened(config, twin, [fault])


@pytest.mark.slow
def test_row_15_two_commands_with_one_run_name(
    config: Path, run: Path, lone_twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused for as long as the first lives, hung or not, and goes on where it
    stopped once it is dead."""
    fault = "stop@rank=0,step=7"
    monkeypatch.setenv("MANYFACES_FAULTS", fault)
    with started("train", config, *ALONE) as first:
        wait_until(lambda: fired(run), first)
        second = subprocess.run(
            [sys.executable, "-m", "manyfaces.train", "train", str(config), *ALONE],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert second.returncode == 2
        (line,) = second.stderr.strip().splitlines()
        assert re.match(rf"error: {run}: another process writes this run: process \d+ on ", line)
        kill_tree(first)
    with started("train", config, *ALONE) as third:
        assert third.wait(TIMEOUT_S) == 0, third.communicate()[0]
    assert resumed(run) == [0, 5]
    check_as_if_nothing_had_happened(config, lone_twin, [fault])


@pytest.mark.slow
def test_row_17_one_rank_gets_sigterm(config: Path, run: Path, twin: Path) -> None:
    live(2, config, "term@rank=1,step=7")
    (told,) = messages(run, "interrupted")
    stopped_at = int(told[-8:])
    assert told.startswith("stopped by SIGTERM; the same command goes on from ")
    assert stopped_at in (7, 8), "no step is lost"
    live(2, config)
    assert resumed(run) == [0, stopped_at]
    check_as_if_nothing_had_happened(config, twin, ["term@rank=1,step=7"])


@pytest.mark.slow
def test_row_17_the_time_of_grace_is_too_short(
    config: Path, run: Path, lone_twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = ["term@rank=0,step=7", "sleep@rank=0,step=7,phase=checkpoint:rows,seconds=60.0"]
    monkeypatch.setenv("MANYFACES_FAULTS", ";".join(faults))
    words = [*ALONE, "cluster.grace_s=6"]
    with started("train", config, *words) as first:
        assert first.wait(TIMEOUT_S) == 75
        text = first.communicate()[0]
    assert "stopped by SIGTERM, in too short a time for a checkpoint (cluster.grace_s)" in text
    assert f"the same command goes on from {run}/checkpoints/step-00000005" in text
    with started("train", config, *words) as again:
        assert again.wait(TIMEOUT_S) == 0, again.communicate()[0]
    assert resumed(run) == [0, 5]
    check_as_if_nothing_had_happened(config, lone_twin, faults)


@pytest.mark.slow
def test_row_20_no_op_is_compiled_whose_lock_could_be_left(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))
    live(1, config)
    assert not (tmp_path / "ops").exists()


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


@pytest.mark.slow
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def is_stopped(process: subprocess.Popen[str]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


SERVER = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's client warns of its own
def test_row_14_mlflow_goes_away_and_comes_back(
    config: Path, run: Path, lone_twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, and the server has each step once: by the end, or by what the command then
    tells."""
    from mlflow import MlflowClient

    faults = [f"stop@rank=0,step={step}" for step in (4, 12, 20)]
    monkeypatch.setenv("MANYFACES_FAULTS", ";".join(faults))
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    words = [*SERVER, "--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/m.db"]

    def serve() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        wait_until(lambda: answers(port))
        return process

    server = serve()
    try:
        with started("train", config, *ALONE, f"tracking.uri={uri}") as process:
            wait_until(lambda: is_stopped(process), process)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: len(fired(run)) == 2 and is_stopped(process), process)
            kill_tree(server)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: len(fired(run)) == 3 and is_stopped(process), process)
            server = serve()
            process.send_signal(signal.SIGCONT)
            text = " ".join(process.communicate(timeout=TIMEOUT_S)[0].split())
            assert process.returncode == 0, text
        if "MLflow does not" in text:  # the server was too slow at the end, which is told
            assert "`manyfaces sync-mlflow" in text
            wait_until(lambda: forked("sync-mlflow", run).returncode == 0)
        client = MlflowClient(uri)
        (found,) = client.search_runs([client.get_experiment_by_name("manyfaces").experiment_id])
        history = client.get_metric_history(found.info.run_id, "train/loss")
        assert {each.step: each.value for each in history} == losses(run)
        assert len(history) == STEPS
        assert found.info.status == "FINISHED"
    finally:
        kill_tree(server)
    away = messages(run, "checkpoint")
    assert [told[-2:] for told in away] == ["05", "10", "15", "20", "24"]
    check_as_if_nothing_had_happened(config, lone_twin, faults)
