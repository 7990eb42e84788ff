"""A trained run teaches a narrower network, beside a margin softmax and alone."""

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import forked, recipe, rows
from safetensors.torch import load_file

ALONE = {"workers": 1, "launcher": "process"}


@pytest.mark.slow
def test_a_run_teaches_another(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, dataset_path, train={"epochs": 1}, cluster=ALONE)
    taught = forked("train", config, "run.name=teacher")
    assert taught.returncode == 0, taught.stdout + taught.stderr
    runs = tmp_path / "runs"

    # Beside a margin softmax, to another width: relative paths, and a run in the teacher's place.
    tree = yaml.safe_load(config.read_text())
    tree["model"]["embedding_dim"] = 24
    tree["objective"] = {
        "kind": "sum",
        "of": ["margin_softmax", {"kind": "distill", "teacher": os.path.relpath(runs / "teacher")}],
    }
    config.write_text(yaml.safe_dump(tree))
    done = forked("train", config, "run.name=student")
    assert done.returncode == 0, done.stdout + done.stderr
    newest = max((runs / "student" / "checkpoints").glob("step-*"))
    assert {
        name: list(t.shape) for name, t in load_file(newest / "network.safetensors").items()
    } == {"map.weight": [32, 24]}
    assert (
        load_file(newest / "backbone.safetensors").keys()
        == load_file(
            max((runs / "teacher" / "checkpoints").glob("step-*")) / "backbone.safetensors"
        ).keys()
    )
    logged = rows(runs / "student" / "metrics.jsonl")
    assert all("train/loss_distill" in row for row in logged if "train/loss" in row)

    # It goes on from a checkpoint to the same end.
    again = forked(
        "train", config, "run.name=again", f"run.resume_from={newest.with_name('step-00000005')}"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    for file in ("backbone.safetensors", "network.safetensors"):
        whole = load_file(newest / file)
        resumed = load_file(runs / "again" / "checkpoints" / newest.name / file)
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())

    # Another teacher under the same name is another experiment.
    shutil.copytree(runs / "student", runs / "other")
    other = ["objective.of.distill.teacher=" + str(runs / "other")]
    refused = forked("train", config, "run.name=student", *other)
    assert refused.returncode == 2
    assert "teacher_sha256" in refused.stderr
    missing = forked("train", config, "run.name=m", "objective.of.distill.teacher=nowhere")
    assert missing.returncode == 2
    assert "nowhere: no trained network there" in missing.stderr
    assert not (runs / "m").exists()
    nameless = newest / "optimizer.safetensors"
    told = forked("train", config, "run.name=m", f"objective.of.distill.teacher={nameless}")
    assert told.returncode == 2
    assert "does not say which network its weights are of" in told.stderr
    assert not (runs / "m").exists()
