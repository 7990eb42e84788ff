"""What a run survives, a fault a test: the fault is injected, the person reads one line, and the
run ends bit for bit as if it had not been, every sample of each epoch trained on once."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from commands import TIMEOUT_S, kill_tree, rows, started, wait_until
from fault_runs import (
    ALONE,
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
    resumed,
)

from manyfaces.data.dataset.dataset import open_dataset

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
]


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
