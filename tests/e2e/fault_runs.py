"""Runs with planned faults on real gloo ranks, and what has to be true of them once they have
ended."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tensors import differing
from commands import recipe, rows
from launcher import run_ranks
from trained_samples import read_samples

from manyfaces.cluster import signals
from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_data
from manyfaces.data.orders.build import build_order
from manyfaces.train.folder import RunFolder
from manyfaces.train.session import work
from manyfaces.train.stopping import forget_session

IMAGES, BATCH, EPOCHS = 120, 20, 4
STEPS = EPOCHS * IMAGES // BATCH
TIMEOUT_S = 600
ALONE = ["cluster.launcher=process", "cluster.workers=1"]
"""One process, which a person can see, stop and kill."""


def fault_recipe(folder: Path, dataset: Path, **sections: Any) -> Path:
    """24 steps of 20 images, 6 an epoch, with a checkpoint each 5 steps."""
    sections["train"] = {"batch_size": BATCH, "epochs": EPOCHS, **sections.get("train", {})}
    tracking = {"log_every_steps": 1, "log_samples": True}
    sections["tracking"] = {**tracking, **sections.get("tracking", {})}
    path = recipe(folder, dataset, **sections)
    (folder / "runs" / "run").mkdir(parents=True, exist_ok=True)
    return path


def live(world: int, config: Path, faults: str = "") -> None:
    """The workers of one launch, to their end; each launch is the same command again."""
    run_ranks(world, _work, str(config), faults, timeout_s=TIMEOUT_S)


def die(world: int, config: Path, faults: str) -> None:
    """As `live`, for a launch in which a rank is killed: the others fail for want of it, or are
    killed after it."""
    with pytest.raises(RuntimeError, match=r"a rank died without a word|rank \d of \d failed"):
        live(world, config, faults)


def _work(config_path: str, faults: str) -> None:
    # DeepSpeed and what it imports warn of torch and of themselves.
    warnings.simplefilter("default")
    config = load(config_path, [])
    forget_session(RunFolder.of(config))
    with signals.listening(config.cluster.grace_s):
        work(
            {
                "name": config.run.name,
                "config": config.model_dump(mode="json"),
                "faults": faults,
            }
        )


def messages(run: Path, *kinds: str) -> list[str]:
    return [row["message"] for row in rows(run / "events.jsonl") if row["kind"] in kinds]


def fired(run: Path) -> list[str]:
    """The faults that came true, in their order."""
    return [row["fault"] for row in rows(run / "events.jsonl") if row["kind"] == "fault"]


def resumed(run: Path) -> list[int]:
    """The step that each launch began after."""
    return [row["step"] for row in rows(run / "events.jsonl") if row["kind"] == "start"]


def losses(run: Path) -> dict[int, float]:
    found = [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in found] == list(range(1, STEPS + 1)), "each step is there once"
    return {row["step"]: row["train/loss"] for row in found}


def check_samples(config: Path, run: Path, left_out: Sequence[int] = ()) -> None:
    """Each step was trained on the samples that the order has at its place, and each epoch on every
    sample once, but for those that are left out."""
    tree = load(str(config), [])
    order = build_order(open_data(tree.data), tree.data.order, tree.run.seed)
    found = read_samples(run / "samples")
    assert list(found) == list(range(1, STEPS + 1))
    epochs: list[list[int]] = [[] for _ in range(EPOCHS)]
    for step, parts in found.items():
        position = (step - 1) * BATCH
        assert {part["position"] for part in parts} == {position}
        trained = [sample for part in parts for sample in part["ids"]]
        wanted = order.ids(position, BATCH).tolist()
        assert trained == [sample for sample in wanted if sample not in left_out]
        epochs[position // IMAGES] += trained
    every = [sample for sample in range(IMAGES) if sample not in left_out]
    assert [sorted(each) for each in epochs] == [every] * EPOCHS


def check_as_if_nothing_had_happened(config: Path, twin: Path, faults: Sequence[str]) -> None:
    """The faults came true, and yet the run has ended bit for bit as its undisturbed twin, with
    every sample of each epoch once."""
    run = RunFolder.of(load(str(config), [])).path
    assert fired(run) == list(faults)
    check_same_end(run, twin)
    check_samples(config, run)


def check_same_end(run: Path, twin: Path) -> None:
    """Every loss and every tensor of the two is the same."""
    assert losses(run) == losses(twin)
    name = f"checkpoints/step-{STEPS:08d}"
    assert not differing(run / name, twin / name)
