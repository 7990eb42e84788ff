"""An embedding that is killed or stopped goes on by the same command, with each image once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import forked, started
from tiny_encoder import SLEEP, tiny_encoder

PARTS = 15


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on(
    dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    network, out = tiny_encoder(tmp_path), tmp_path / "e.parquet"
    parts = tmp_path / "e.parquet.parts"
    words = ["embed", network, dataset_path, "--out", out, "--part-images", 8, "--batch-size", 4]
    whole = tmp_path / "whole.parquet"
    assert forked(*[whole if word == out else word for word in words]).returncode == 0
    monkeypatch.setenv(SLEEP, "0.1")

    def kill(pid: int) -> None:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("part-*.parquet"))) < 3:
            assert time.monotonic() < deadline, "no part was written"
            time.sleep(0.01)
        os.kill(pid, number)

    killed = forked(*words, meanwhile=kill)
    assert killed.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    before = {part.name: part.stat().st_mtime_ns for part in parts.glob("part-*.parquet")}
    assert 3 <= len(before) < PARTS
    assert not out.exists()
    if number == signal.SIGTERM:
        told = f"{8 * len(before)} of 120 images are embedded; the same command goes on"
        assert f"stopped by SIGTERM; {told}" in killed.stderr
    monkeypatch.setenv(SLEEP, "0")
    done = forked(*words)
    assert done.returncode == 0, done.stderr
    assert f"{8 * len(before)} of 120 images are embedded already" in done.stdout
    assert not parts.exists()
    assert pq.read_table(out).equals(pq.read_table(whole))


@pytest.mark.slow
def test_workers_of_ray_and_of_torchrun_write_the_same(dataset_path: Path, tmp_path: Path) -> None:
    network = tiny_encoder(tmp_path)
    words = ["embed", network, dataset_path, "--part-images", 16, "--out"]
    assert forked(*words, tmp_path / "one.parquet").returncode == 0
    with started(*words, tmp_path / "ray.parquet", "--workers", 2) as process:
        assert process.wait(240) == 0, process.stdout and process.stdout.read()
    command = ["torchrun", "--nproc-per-node=2", "-m", "manyfaces.train"]
    torchrun = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    done = subprocess.run(
        [*torchrun, *map(str, words), str(tmp_path / "torchrun.parquet")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one = pq.read_table(tmp_path / "one.parquet")
    for other in ("ray", "torchrun"):
        assert pq.read_table(tmp_path / f"{other}.parquet").equals(one)
