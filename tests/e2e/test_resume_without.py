"""Somebody asks to be forgotten while a run stands still: it resumes without them."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import forked, kill_tree, recipe, started, wait_until
from safetensors.torch import load_file


def head_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in (checkpoint / "head").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
def test_later_checkpoints_hold_no_centre_of_a_forgotten_identity(
    dataset_path: Path, tmp_path: Path
) -> None:
    dataset = shutil.copytree(dataset_path, tmp_path / "dataset")
    config = recipe(
        tmp_path, dataset, cluster={"workers": 1, "launcher": "process"}, head={"sample_rate": 1.0}
    )
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    with started("train", config) as process:
        wait_until(lambda: (checkpoints / "step-00000010" / "COMMIT.json").exists(), process)
        kill_tree(process)
    done = forked("data", "forget", dataset, "--identity", "3", "--identity", "5")
    assert done.returncode == 0, done.stderr
    assert "forgotten are 2 identities" in done.stdout
    assert head_of(checkpoints / "step-00000010")["rows"][[3, 5]].any()

    again = forked("train", config)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "forgotten: 2 identities" in again.stdout
    assert "resuming step-000000" in again.stdout
    last = head_of(checkpoints / "step-00000030")
    assert not last["rows"][[3, 5]].any()
    assert not last["momentum"][[3, 5]].any()
    assert last["rows"].any(1).sum() == len(last["rows"]) - 2
    wrong = forked("data", "forget", dataset, "--identity", "12345")
    assert wrong.returncode == 2
    assert "no identity 12345" in wrong.stderr
