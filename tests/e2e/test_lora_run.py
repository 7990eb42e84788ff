"""A run that trains adapters alone: what its checkpoints hold, that it resumes to the bit, that it
refuses another base, and that its export is one plain network."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from commands import forked, recipe
from launcher import run_ranks
from safetensors.torch import load_file, save_file

from manyfaces.configs.load import load
from manyfaces.train import load_model
from manyfaces.train.folder import RunFolder
from manyfaces.train.session import work

NETWORK = {
    "kind": "timm",
    "name": "vit_tiny_patch16_224",
    "parameters": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "embedding_dim": 32,
}


def trained(recipe_path: str, words: list[str]) -> None:
    """The worker function itself, on every rank of a group."""
    # DeepSpeed and what it imports warn of torch and of themselves.
    warnings.simplefilter("default")
    config = load(recipe_path, words)
    if dist.get_rank() == 0:
        RunFolder.of(config).path.mkdir(parents=True)
    dist.barrier()
    work({"name": config.run.name, "config": config.model_dump(mode="json")})


def recipe_of(folder: Path, dataset: Path, model: dict[str, Any], **sections: Any) -> Path:
    path = recipe(folder, dataset, **sections)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model": model}))
    return path


def base_file(folder: Path, dataset: Path, seed: int) -> Path:
    """Weights of the network, as a file of another program has them: without our embedding layer."""
    config = load(str(recipe_of(folder / "base", dataset, NETWORK)), [])
    torch.manual_seed(seed)
    weights = config.model.build(image_hw=(64, 64)).state_dict()
    file = folder / f"base-{seed}.safetensors"
    trunk = {k.removeprefix("trunk."): v for k, v in weights.items() if k.startswith("trunk.")}
    save_file(trunk, file)
    return file


@pytest.mark.slow
def test_a_run_of_adapters(dataset_path: Path, tmp_path: Path) -> None:
    init = base_file(tmp_path, dataset_path, seed=1)
    pairs = tmp_path / "pairs.bin"
    assert forked("data", "pairs", dataset_path, pairs, "--count", "40").returncode == 0
    config = recipe_of(
        tmp_path,
        dataset_path,
        NETWORK | {"init": str(init), "adapters": [{"kind": "lora", "rank": 4}]},
        train={"epochs": 1, "optimizer": {"kind": "adamw", "lr": 0.01}},
        evaluation={"pairs": [str(pairs)]},
        cluster={"workers": 1, "launcher": "process"},
        engine={"zero_stage": 1},
    )
    run_ranks(2, trained, str(config), [])
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    newest = max(checkpoints.glob("step-*"))
    weights = load_file(newest / "backbone.safetensors")
    trunk = {name for name in weights if name.startswith("trunk.")}
    assert trunk == {
        f"trunk.blocks.{block}.attn.qkv.lora_{side}.{part}"
        for block in (0, 1)
        for side in "ab"
        for part in "qv"
    }
    assert {name for name in weights if name not in trunk} >= {"feature.0.weight"}
    assert all(weights[name].any() for name in trunk)

    # From a checkpoint to the same end.
    before = newest.with_name("step-00000005")
    run_ranks(2, trained, str(config), ["run.name=again", f"run.resume_from={before}"])
    resumed = load_file(
        tmp_path / "runs" / "again" / "checkpoints" / newest.name / "backbone.safetensors"
    )
    assert all(torch.equal(resumed[name], weight) for name, weight in weights.items())

    # Another base is refused, and so are adapters as somebody's weights.
    other = base_file(tmp_path, dataset_path, seed=2)
    wrong = forked(
        "train", config, "run.name=w", f"run.resume_from={before}", f"model.init={other}"
    )
    assert wrong.returncode == 2
    assert "its adapters belong to the base weights that were at" in wrong.stderr
    alone = forked("train", config, "run.name=w2", f"model.init={newest}")
    assert alone.returncode == 2
    assert "holds adapters without the weights that they belong to" in alone.stderr

    # One plain network.
    assert forked("evaluate", tmp_path / "runs" / "run").returncode == 0
    exported = tmp_path / "face.safetensors"
    assert forked("export", tmp_path / "runs" / "run", exported).returncode == 0
    plain = load_file(exported)
    assert not any("lora" in name for name in plain)
    assert torch.equal(plain["trunk.cls_token"], load_file(init)["cls_token"])
    images = list(np.random.default_rng(3).integers(0, 256, (4, 64, 64, 3), np.uint8))
    merged = load_model(exported).embed(images)
    np.testing.assert_allclose(
        merged, load_model(tmp_path / "runs" / "run").embed(images), atol=1e-4
    )
