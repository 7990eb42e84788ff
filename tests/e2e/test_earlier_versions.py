"""Runs and checkpoints that earlier versions wrote go on.

`fixtures/runs_of_format_1.tar.xz` was written by the version of commit 314b193: a dataset of made
faces and two runs of eight steps that stopped after the fourth, one with class centres and one with
triplets alone, whose tensors were then made repetitive to pack well. `expected.json` has the loss
and the gradient's norm of each step as that version went on from there.
"""

import json
import tarfile
from pathlib import Path

import pytest
import yaml
from commands import forked, rows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs_of_format_1.tar.xz"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The folder with `faces`, `runs/softmax` and `runs/triplet`."""
    with tarfile.open(FIXTURE) as archive:
        # Python has filters from 3.11.4 on, and warns where none is given from 3.12 on.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **filters)
    return tmp_path


def recipe(before: Path, run: str) -> Path:
    """The run's own configuration, in its old spelling, with the folders of today."""
    tree = yaml.safe_load((before / "runs" / run / "config.yaml").read_text())
    tree["run"]["dir"], tree["data"]["path"] = str(before / "runs"), str(before / "faces")
    path = before / f"{run}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("run", ["softmax", "triplet"])
def test_a_run_goes_on_where_the_earlier_version_stopped(before: Path, run: str) -> None:
    expected = json.loads((before / "runs" / run / "expected.json").read_text())
    done = forked("train", recipe(before, run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming step-00000004 at sample 32" in done.stdout
    assert "old spelling" in done.stderr
    metrics = rows(before / "runs" / run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 9))
    # The fifth step's loss is a function of what was restored, of the order and of the
    # augmentation; later steps differ between machines by more than rounding.
    loss, grad_norm = expected["5"]
    assert metrics[4]["train/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics[4]["train/grad_norm"] == pytest.approx(grad_norm, rel=1e-2)


def test_its_checkpoint_starts_another_run(before: Path) -> None:
    checkpoint = before / "runs" / "softmax" / "checkpoints" / "step-00000004"
    config = recipe(before, "softmax")
    words = ["run.name=second", f"run.resume_from={checkpoint}", "model.embedding_dim=16"]
    refused = forked("train", config, *words)
    assert refused.returncode == 2
    assert "its model.embedding_dim 8 cannot continue as 16" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = forked("train", config, *words[:2], "train.optimizer.lr=0.01", "head.margin.m=0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run.resume_from, as this run has none of its own" in done.stdout


def test_its_checkpoint_cannot_go_on_without_its_class_centres(before: Path) -> None:
    checkpoint = before / "runs" / "triplet" / "checkpoints" / "step-00000004"
    words = ["run.name=second", f"run.resume_from={checkpoint}"]
    refused = forked("train", recipe(before, "softmax"), *words)
    assert refused.returncode == 2
    assert "its objective no state cannot continue as head" in refused.stderr


def test_another_setting_of_an_earlier_run_is_named_by_todays_key(before: Path) -> None:
    refused = forked("train", recipe(before, "softmax"), "data.window_shards=3")
    assert refused.returncode == 2
    assert "data.order.window_shards: 2 there, 3 here" in refused.stderr
