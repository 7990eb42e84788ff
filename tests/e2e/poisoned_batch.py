"""The recipe of a run of which one batch gives NaN."""

from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.orders.build import build_order

BATCH, STEPS = 16, 8
OWN = '''
import torch
from torch import nn

from manyfaces.train.objectives.objective import Loss, Objective


class Tiny(nn.Sequential):
    def __init__(self, image_hw):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.PReLU(8), nn.Flatten(),
            nn.Linear(8 * 8 * 8, 16),
        )


class Poisoned(Objective):
    """Beside the head's loss, which stays finite: NaN on the rank that has the sample."""

    def __init__(self, sample):
        self.sample = sample

    def loss(self, forward, batch, moment):
        factor = float("nan") if self.sample in batch.ids_N.tolist() else 1e-3
        value = factor * forward().embeddings["main"].square().mean()
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))
'''


def recipe(folder: Path, dataset: Path, step: int) -> Path:
    """A run of 8 steps whose sample in the middle of this step gives NaN."""
    own = folder / "own.py"
    own.write_text(OWN)
    tree: dict[str, Any] = {
        "run": {"name": "run", "dir": str(folder / "runs")},
        "data": {"path": str(dataset), "image_px": 32},
        "model": {"kind": "custom", "file": str(own), "name": "Tiny", "embedding_dim": 16},
        "head": {"margin": {"kind": "adaface", "m": 0.2}, "scale": 32, "sample_rate": 0.5},
        "train": {
            "batch_size": BATCH,
            "epochs": 1,
            "optimizer": {"kind": "adamw", "lr": 0.01},
            "on_not_finite": "leave_out",
        },
        "checkpoint": {"every_steps": 4, "keep": 20},
        "tracking": {"log_every_steps": 1},
        "cluster": {"workers": 1, "launcher": "process"},
    }
    path = folder / f"poisoned-{step}.yaml"
    path.write_text(yaml.safe_dump(tree))
    config = load(str(path), [])
    order = build_order(open_dataset(dataset), config.data.order, config.run.seed)
    # A sample of rank 1; the last batch ends with samples that have come before.
    place = 3 if step == STEPS else BATCH - 3
    poison = {"sample": int(order.ids((step - 1) * BATCH + place, 1)[0])}
    custom = {"kind": "custom", "file": str(own), "name": "Poisoned", "parameters": poison}
    tree["objective"] = {"kind": "sum", "of": ["margin_softmax", custom]}
    path.write_text(yaml.safe_dump(tree))
    return path
