"""A fresh run starts from another's weights and shows which of them it took."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import forked, recipe, rows
from safetensors.torch import load_file, save_file

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.train.initial_weights import initial_file


@pytest.mark.slow
def test_a_folder_of_weights(tmp_path: Path, dataset: Dataset) -> None:
    path = recipe(tmp_path, dataset.part.path, train={"epochs": 1}, cluster={"launcher": "process"})
    torch.manual_seed(8)
    backbone = load(str(path), []).model.build(image_hw=(64, 64))
    weights = {name: tensor + 0.125 for name, tensor in backbone.state_dict().items()}
    weights["mine"] = torch.zeros(1)
    (left_out, *_) = [name for name in weights if name.endswith("weight")]
    del weights[left_out]
    (tmp_path / "theirs").mkdir()
    save_file(weights, tmp_path / "theirs" / "model.safetensors")

    # Steps too small to change a float32: the checkpoint holds what the run started from.
    still = ["train.optimizer.lr=1e-30"]
    run = tmp_path / "runs[x]" / "run"
    words = [f"run.dir={run.parent}", f"model.init={tmp_path / 'theirs'}", *still]
    done = forked("train", path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for cell in ("missing in the file", left_out, "not used of the file", "mine"):
        assert cell in done.stdout
    (event,) = [row for row in rows(run / "events.jsonl") if row["kind"] == "init"]
    assert event["table"]["rows"][1] == ["missing in the file", 1, left_out]
    (newest, *_) = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    assert f"checkpoint  {newest}\n" in done.stdout
    trained = load_file(newest / "backbone.safetensors")
    for name, tensor in backbone.named_parameters():
        if name != left_out:
            assert torch.equal(trained[name], weights[name]), name
        assert tensor.shape == trained[name].shape

    for place in (run, newest):
        assert initial_file(str(place)) == newest / "backbone.safetensors"

    without = forked("evaluate", run)
    assert "run: its configuration has no evaluation; give --pairs BIN" in without.stderr

    shutil.rmtree(tmp_path / "theirs")  # a run that has begun needs it no more
    again = forked("train", path, *words)
    assert again.returncode == 0, again.stderr
    assert "already complete" in again.stdout
