"""A run at a URL by the command line, on two gloo ranks: killed with its machine, it goes on from the
store on a fresh one to the same bits and the same record, and no credential is left anywhere."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TIMEOUT_S, forked, kill_tree, manyfaces, recipe, rows, wait_until
from store_server import CREDENTIALS, Proxy

from manyfaces.train.checkpoint.commit import Commit, read_commit
from manyfaces.train.checkpoint.store import RunStore

SECRET = "PLANTED-SECRET"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def command(*words: object) -> list[str]:
    """What starts two ranks on this machine."""
    ranks = [*TORCHRUN, "-m", "manyfaces.train", "train", *words, "cluster.launcher=process"]
    return [*map(str, ranks)]


def to_the_end(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@contextlib.contextmanager
def in_background(*words: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        kill_tree(process)


def config(folder: Path, dataset: Path, **run: Any) -> Path:
    return recipe(
        folder,
        dataset,
        run={"work_dir": str(folder / "work"), **run},
        checkpoint={"every_steps": 5, "keep": 2, "store_patience_s": 60},
        train={"epochs": 2},
        tracking={"uri": f"sqlite:///{folder.parent}/mlflow.db"},
    )


def tensors(checkpoint: Path) -> dict[str, str]:
    commit = read_commit(checkpoint)
    assert isinstance(commit, Commit)
    return {name: each.sha256 for name, each in commit.files.items() if name.endswith("tensors")}


@pytest.mark.slow
def test_it_goes_on_from_the_store_on_a_fresh_machine(
    proxy: Proxy, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    proxy.put("/bucket")
    whole = config(tmp_path / "whole", dataset_path)
    assert to_the_end(whole).returncode == 0
    first = config(tmp_path / "first", dataset_path, dir="s3://bucket/runs")
    store = RunStore("s3://bucket/runs/run", 120)

    def stored() -> list[int]:
        return [each.step for each in store.checkpoints() if isinstance(each.commit, Commit)]

    events = tmp_path.joinpath("first", "work", "s3", "bucket", "runs", "run", "events.jsonl")
    with in_background(first) as process:
        wait_until(lambda: any(row["kind"] == "uploaded" for row in rows(events)), process)
        kill_tree(process)
    at = max(stored())
    written = files(tmp_path)
    shutil.rmtree(tmp_path / "first" / "work")

    fresh = config(tmp_path / "fresh", dataset_path, dir="s3://bucket/runs")
    done = to_the_end(fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"s3://bucket/runs/run: fetched step-{at:08d} to" in done.stdout
    assert "every byte compared" in done.stdout
    run = tmp_path / "fresh" / "work" / "s3" / "bucket" / "runs" / "run"
    end = run / "checkpoints" / "step-00000015"
    plain = tmp_path / "whole" / "runs" / "run"
    assert tensors(end) == tensors(plain / "checkpoints" / "step-00000015")
    assert stored() == [15, 10]
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 16))
    losses = [
        [row.get("train/loss") for row in rows(each / "metrics.jsonl")] for each in (plain, run)
    ]
    assert losses[0] == losses[1]
    assert store.remote.read("metrics.jsonl") == (run / "metrics.jsonl").read_bytes()
    events = [row["kind"] for row in rows(run / "events.jsonl")]
    assert (events.count("start"), events[-1]) == (2, "finished")
    known = [
        json.loads(each)["run_id"]
        for each in (store.remote.read("mlflow.json"), (run / "mlflow.json").read_bytes())
    ]
    assert known[0] == known[1]
    assert "has no run" not in done.stdout, "the same run of MLflow's went on"
    # Of a finished run nothing is trained again, on whichever machine.
    written += files(tmp_path)
    shutil.rmtree(tmp_path / "fresh" / "work")
    again = forked("train", fresh, "cluster.launcher=process")
    assert "already complete at step 15" in again.stdout, again.stderr
    objects = [*objects_of(store), (done.stdout + done.stderr).encode()]
    written += files(tmp_path)
    assert not any(SECRET.encode() in body for body in (*objects, *written))
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] != SECRET


def files(folder: Path) -> list[bytes]:
    """What every file in the folder holds."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def objects_of(store: RunStore) -> list[bytes]:
    """Every object of the run."""
    fs = store.remote._fs
    return [fs.cat_file(path) for path in fs.find(store.remote._root)]


@pytest.mark.slow
def test_a_store_that_is_gone_at_the_end_is_told_and_made_up_for(
    proxy: Proxy, dataset_path: Path, tmp_path: Path
) -> None:
    proxy.put("/bucket")
    words = "cluster.workers=1", "cluster.launcher=process", "run.name=gone"
    here = config(tmp_path / "here", dataset_path, dir="s3://bucket/runs")
    proxy.put_faults["gone/checkpoints/step-00000015"] = [403] * 10_000
    ended = manyfaces("train", here, *words)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "the last checkpoint, of step 15, is not in s3://bucket/runs/gone (" in line
    assert "the last one there is step-00000010; it stays at /" in line
    proxy.forget()
    again = manyfaces("train", here, *words)
    assert again.returncode == 0, again.stderr
    assert "step 15 is in s3://bucket/runs/gone" in again.stdout


@pytest.mark.slow
def test_a_place_that_is_none_is_one_line(proxy: Proxy, dataset_path: Path, tmp_path: Path) -> None:
    here = config(tmp_path, dataset_path, dir="s3://no-such-bucket/runs")
    ended = forked("train", here)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "; make the bucket, or correct the URL" in line
    assert not any((tmp_path / "work").rglob("checkpoints"))
