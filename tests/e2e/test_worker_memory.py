"""The memory that a plan says beside that of real workers at their peak."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from worker_peaks import made_identities, peaks_of

from manyfaces.configs.worker_memory import BESIDE_WORKERS

pytestmark = pytest.mark.slow

TOLERANCE = 0.15
TRAIN = ["-m", "manyfaces.train", "train"]
ADAMW = {"kind": "adamw", "lr": 0.001}
RUNS: dict[str, dict[str, Any]] = {
    "mobilefacenet": {"train": {"batch_size": 64}, "engine": {"zero_stage": 1}},
    "mobilefacenet-bf16-56px": {
        "model": {"kind": "mobilefacenet", "scale": 1},
        "data": {"image_px": 56},
        "train": {"batch_size": 96, "precision": "bfloat16"},
        "engine": {"zero_stage": 2},
    },
    "iresnet18-adamw": {
        "model": {"kind": "iresnet", "depth": 18},
        "train": {"batch_size": 24, "optimizer": ADAMW},
        "engine": {"zero_stage": 0},
    },
    "iresnet50": {"model": {"kind": "iresnet", "depth": 50}, "train": {"batch_size": 16}},
    "vit-tiny-zero3": {
        "model": {"kind": "vit", "size": "tiny"},
        "train": {"batch_size": 32, "optimizer": ADAMW},
        "engine": {"zero_stage": 3},
    },
    "many-identities": {
        "model": {"kind": "mobilefacenet", "scale": 1},
        "data": {"image_px": 56},
        "train": {"batch_size": 32},
    },
    "two-ranks-of-ray": {
        "model": {"kind": "iresnet", "depth": 18},
        "train": {"batch_size": 32},
        "cluster": {"launcher": "ray", "workers": 2},
    },
}
STEPS = 8


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_within_15_percent_of_the_peak(
    name: str, dataset_path: Path, tmp_path: Path
) -> None:
    many = name == "many-identities"
    data = made_identities(tmp_path / "many", dataset_path, 60_000) if many else dataset_path
    tree: dict[str, Any] = {
        "run": {"name": "run", "dir": str(tmp_path / "runs")},
        "data": {"path": str(data)},
        "model": {"kind": "mobilefacenet"},
        "train": {},
        "checkpoint": {"every_steps": 3},
        "cluster": {"launcher": "process", "workers": 1},
    }
    for section, values in RUNS[name].items():
        tree[section] = {**tree.get(section, {}), **values}
    images = 60_000 if many else 120
    tree["train"]["epochs"] = STEPS * tree["train"]["batch_size"] / images
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(tree))
    found = peaks_of([*TRAIN, str(config)], tmp_path / "runs" / "run")
    planned = found.plan["memory_bytes"]
    told = f"{name}: planned {planned / 2**20:,.0f} MiB, measured {found.worker / 2**20:,.0f} MiB"
    print(f"{told}, beside it {found.beside / 2**20:,.0f} MiB")  # noqa: T201
    assert planned == pytest.approx(found.worker, rel=TOLERANCE), told
    if tree["cluster"]["launcher"] == "ray":
        assert pytest.approx(found.beside, rel=TOLERANCE) == BESIDE_WORKERS
