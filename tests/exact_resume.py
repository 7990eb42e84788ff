"""One assertion of exact resume: a run is trained to its end with a checkpoint behind every step,
is resumed from each of them in fresh processes, and every further step, sample and checkpoint is
compared bit for bit. What runs is the function that the launcher runs in every worker."""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tensors import differing
from launcher import run_ranks

from manyfaces.configs.load import load_stored

Tree = Mapping[str, Any]
Samples = list[tuple[int, list[int]]]
"""Position in the stream and sample ids of each of a rank's batches."""
BY_THE_CLOCK = re.compile(r"time|images_per_s|minutes|.*_share|slowest_rank.*|start/.*")
"""Names of the numbers of a step that no two runs have in common."""
_TIMEOUT_S = 400
_PARTITIONED_FROM = 100
"""Stage 3 parts weights of more elements than this among the ranks: some of our small networks'.
DeepSpeed's own limit is far above them."""

NETWORK = '''
from torch import nn


class Small(nn.Sequential):
    """BatchNorm, whose statistics are each rank's own, or LayerNorm, and something random."""

    def __init__(self, embedding_dim, norm="batch", dropout=0.2):
        norms = {"batch": nn.BatchNorm2d(8), "layer": nn.GroupNorm(1, 8)}
        super().__init__(
            nn.Conv2d(3, 8, 5, stride=4),
            norms[norm],
            nn.PReLU(8),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * 7 * 7, embedding_dim),
        )
'''


@dataclass(frozen=True)
class Trained:
    """A run that has ended."""

    folder: Path
    samples: list[Samples]
    """By rank."""

    @property
    def numbers(self) -> dict[int, dict[str, float]]:
        """What was measured at each step, but for times."""
        rows = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {
            row["step"]: {name: row[name] for name in row if not BY_THE_CLOCK.fullmatch(name)}
            for row in rows
            if "train/loss" in row
        }

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def restored(self, step: int) -> Path:
        """The checkpoint that was written before the first step of a run resumed at `step`."""
        return self.folder / "restored" / f"step-{step:08d}"

    def ids(self, first: int = 0) -> dict[int, list[int]]:
        """The sample ids of all ranks by the position of their batch, from position `first` on."""
        batches = (zip(*ranks, strict=True) for ranks in zip(*self.samples, strict=True))
        return {
            positions[0]: [each for of_rank in ids for each in of_rank]
            for positions, ids in batches
            if positions[0] >= first
        }


def small_tree(dataset: Path, folder: Path, **sections: Any) -> dict[str, Any]:
    """The configuration, for `trained`, of a run of three steps of eight images on a network of some
    thousand weights; `sections` are laid over it, one level deep."""
    file = folder / "small_network.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(NETWORK)
    tree: dict[str, Any] = {
        "data": {
            "path": str(dataset),
            "image_px": 32,
            "augment": ["flip"],
            "order": {"kind": "pk", "images_per_identity": 2},
        },
        "model": {"kind": "custom", "file": str(file), "name": "Small", "embedding_dim": 16},
        "train": {"batch_size": 8, "epochs": 0.2, "optimizer": {"kind": "adamw", "lr": 0.01}},
        "checkpoint": {"every_steps": 1, "keep": 1000},
        "tracking": {"log_every_steps": 1},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return tree


def trained(
    folder: Path, tree: Tree, world_size: int, start: Path | None = None, **sections: Any
) -> Trained:
    """Train in fresh processes to the end, from the checkpoint `start` where one is given: it is
    copied to the run's own folder, where the run finds it. `sections` are laid over the tree, one
    level deep."""
    tree = dict(tree)
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    tree["run"] = {"name": folder.name, "dir": str(folder.parent)}
    (folder / "checkpoints").mkdir(parents=True)
    if start is not None:
        shutil.copytree(start, folder / "checkpoints" / start.name)
    config = load_stored(tree, str(folder)).model_dump(mode="json")
    samples = run_ranks(world_size, _worked, config, timeout_s=_TIMEOUT_S)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "finished", events[-1]["message"]
    began = next(event for event in events if event["kind"] == "start")
    assert began["step"] == (int(start.name.partition("-")[2]) if start else 0), began["message"]
    return Trained(folder, samples)


def assert_resumes_exactly(folder: Path, tree: Tree, world_size: int = 2) -> None:
    """Assert that the run of this configuration, resumed from the checkpoint of any of its steps,
    holds what it held and goes on to the same end, bit for bit; and that to write checkpoints
    changes nothing."""
    whole = trained(folder / "whole", tree, world_size)
    last = max(whole.numbers)
    assert last > 1
    assert len({str(numbers) for numbers in whole.numbers.values()}) == last
    seldom = {"checkpoint": {**tree["checkpoint"], "every_steps": last + 1}}
    saved_once = trained(folder / "saved-once", tree, world_size, **seldom)
    assert saved_once.numbers == whole.numbers
    assert_same_state(saved_once.checkpoint(last), whole.checkpoint(last))
    for step in range(1, last):
        start = whole.checkpoint(step)
        resumed = trained(folder / f"from-{step}", tree, world_size, start)
        assert_same_state(resumed.restored(step), start)
        for later in range(step + 1, last + 1):
            assert resumed.numbers[later] == whole.numbers[later], (step, later)
            assert_same_state(resumed.checkpoint(later), whole.checkpoint(later))
        position = step * tree["train"]["batch_size"]
        assert resumed.ids() == whole.ids(position)


def assert_same_state(ours: Path, theirs: Path) -> None:
    """Assert that two checkpoints, of any numbers of ranks, hold the same bits and numbers."""
    assert not (names := differing(ours, theirs)), (str(ours), str(theirs), names)
    assert _numbers(ours) == _numbers(theirs)


def _numbers(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's state says, but for times and the run's own name."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return {name: state[name] for name in state.keys() - {"config", "seconds"}}


def _worked(config: dict[str, Any]) -> Samples:
    """What a worker does, on this rank; what it has trained on."""
    from manyfaces.data.feed.loader import Batch, Loader
    from manyfaces.train import session
    from manyfaces.train.checkpoint.writer import Checkpointer
    from manyfaces.train.engine import Engine
    from manyfaces.train.loop import Parts, Progress, snapshot, train

    # DeepSpeed and what it imports warn of torch and of themselves.
    warnings.simplefilter("default")
    samples: Samples = []
    batches, settings = Loader.__iter__, Engine._deepspeed_config

    def seen(loader: Loader) -> Iterator[Batch]:
        for batch in batches(loader):
            samples.append((batch.position, batch.ids_N.tolist()))
            yield batch

    def parted(*given: Any) -> dict[str, Any]:
        made = settings(*given)
        made["zero_optimization"]["stage3_param_persistence_threshold"] = _PARTITIONED_FROM
        return made

    def saved_first(parts: Parts, progress: Progress) -> Any:
        """What was restored is written anew before it is trained on."""
        if progress.step:
            folder = parts.checkpointer.folder.with_name("restored")
            again = Checkpointer(folder, parts.config.checkpoint)
            again.save(snapshot(parts, progress))
            again.wait()
        return train(parts, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "__iter__", seen)
        patch.setattr(Engine, "_deepspeed_config", parted)
        patch.setattr(session, "train", saved_first)
        session.work({"name": config["run"]["name"], "config": config})
    return samples
