"""A small run as a person types it, of some 450 steps in a minute on two quiet cores: for benchmarks of
what happens to it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TRAIN = ["-m", "manyfaces.train", "train"]
TORCHRUN = ["-m", "torch.distributed.run", "--master-port=0", "--rdzv-backend=c10d"]
TORCHRUN += ["--rdzv-endpoint=localhost:0"]
IDENTITIES, IMAGES_OF_EACH, BATCH = 200, 12, 16
RECIPE: dict[str, dict[str, Any]] = {
    "run": {"name": "run"},
    "data": {"image_px": 56, "augment": ["flip"]},
    "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": 64},
    "head": {"margin": {"kind": "cosface", "m": 0.2}, "scale": 32, "sample_rate": 0.5},
    "train": {"batch_size": BATCH, "epochs": 1000, "optimizer": {"kind": "sgd", "lr": 0.02}},
    "tracking": {"log_every_steps": 1},
    "cluster": {"max_failures": -1},
}


def made_faces(folder: Path, shard_images: int) -> Path:
    """A dataset of made faces in this folder, which is left as it is if it stands; the folder."""
    if not (folder / "manyfaces.json").exists():
        sizes = [f"--identities={IDENTITIES}", f"--images={IMAGES_OF_EACH}", "--seed=1"]
        made = ["-m", "manyfaces.train", "data", "synth", str(folder), *sizes]
        made.append(f"--shard-images={shard_images}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, *made], check=True, capture_output=True)
    return folder


def write_recipe(folder: Path, **sections: dict[str, Any]) -> Path:
    """The recipe with these settings, for runs in `folder/runs`."""
    tree = {name: dict(values) for name, values in RECIPE.items()}
    tree["run"]["dir"] = str(folder / "runs")
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # which is YAML too
    return path


def command_of(launcher: str, recipe: Path, workers: int) -> list[str]:
    """What a person types after `python`."""
    command = [*TRAIN, str(recipe), f"cluster.workers={workers}"]
    if launcher == "torchrun":
        return [*TORCHRUN, f"--nproc-per-node={workers}", *command]
    return [*command, "cluster.launcher=process"] if launcher == "process" else command
