"""A vision transformer of timm trains from a Hugging Face file, and from its first checkpoint ends
bit for bit where the whole run ended."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import forked, recipe, rows
from safetensors.torch import load_file, save_file

WIDTH, DEPTH = 24, 2


def hugging_face_file(folder: Path) -> Path:
    """A ViT of 96 px images as Hugging Face names its weights."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 37, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 16, 16),
    }
    for number in range(DEPTH):
        layer = f"encoder.layer.{number}."
        for part in ("query", "key", "value"):
            shapes[f"{layer}attention.attention.{part}.weight"] = (WIDTH, WIDTH)
            shapes[f"{layer}attention.attention.{part}.bias"] = (WIDTH,)
        for part, out, into in (
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", 4 * WIDTH, WIDTH),
            ("output.dense", WIDTH, 4 * WIDTH),
        ):
            shapes[f"{layer}{part}.weight"] = (out, into)
            shapes[f"{layer}{part}.bias"] = (out,)
    generator = torch.Generator().manual_seed(2)
    weights = {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}
    save_file(weights, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


def last_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / "step-00000015"
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
def test_trains_and_resumes(tmp_path: Path, dataset_path: Path) -> None:
    config = recipe(
        tmp_path,
        dataset_path,
        train={"epochs": 2, "optimizer": {"kind": "adamw", "lr": 1e-3, "layer_decay": 0.8}},
        cluster={"workers": 1, "launcher": "process"},
    )
    words = [
        "model={kind: timm, name: vit_tiny_patch16_224, embedding_dim: 32, drop_path: 0.2, "
        f"parameters: {{depth: {DEPTH}, embed_dim: {WIDTH}, num_heads: 3}}, "
        f"init: {hugging_face_file(tmp_path)}}}",
        "engine.activation_checkpointing=true",
    ]
    done = forked("train", config, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = tmp_path / "runs" / "run"
    (event,) = [row for row in rows(whole / "events.jsonl") if row["kind"] == "init"]
    told = {what: (number, names) for what, number, names in event["table"]["rows"]}
    resized = "trunk.pos_embed [1, 37, 24] there, [1, 17, 24] here"
    assert told["matched, interpolated"] == (1, resized)
    assert told["not used of the file"][0] == 0

    # As a kill after the first checkpoint leaves the folder.
    expected = last_checkpoint(whole)
    for later in ("step-00000010", "step-00000015"):
        shutil.rmtree(whole / "checkpoints" / later)
    events = (whole / "events.jsonl").read_text().splitlines(keepends=True)
    (whole / "events.jsonl").write_text("".join(events[:-1]))
    again = forked("train", config, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming step-00000005" in again.stdout
    found = last_checkpoint(whole)
    assert expected.keys() == found.keys()
    assert "backbone.safetensors:trunk.blocks.1.attn.qkv.weight" in found
    assert all(torch.equal(expected[name], found[name]) for name in expected)
