"""A batch that gives NaN is left out: the run goes back, and ends bit for bit where a run ends in
which somebody skips that batch by hand, through kills too."""

import os
import signal
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import yaml
from commands import rows
from launcher import run_ranks
from safetensors.torch import load_file

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.orders.build import build_order
from manyfaces.train import loop, session
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.left_out import LeftOut, LeftOutBatches
from manyfaces.train.step import StepResult

BATCH, STEPS, LONG_S = 16, 8, 400
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


class Run(NamedTuple):
    """A run of the worker function itself."""

    path: Path
    words: tuple[str, ...] = ()
    skip: int | None = None
    """A step at which somebody makes nothing of the batch by hand."""
    dies: str = ""
    """Where it is killed once it went back."""

    @property
    def folder(self) -> Path:
        run = load(str(self.path), [*self.words]).run
        return Path(run.dir, run.name)


def run_workers(runs: list[Run]) -> None:
    """One run after the other, in the same processes."""
    warnings.simplefilter("default")  # of DeepSpeed's and what it imports
    made, found = loop.train_step, session.find
    for run in runs:
        config = load(str(run.path), [*run.words])
        sessions: list[int] = []

        def find(*arguments: Any, run=run, sessions=sessions) -> Any:
            sessions.append(1)
            if run.dies == "at once" and len(sessions) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return found(*arguments)

        def step(
            engine, objective, batch, moment, run=run, sessions=sessions, **options
        ) -> StepResult:
            if run.skip is not None and batch.position == (run.skip - 1) * BATCH:
                return StepResult(torch.tensor(0.0), 0.0, False, {})
            if run.dies == "on the way" and len(sessions) == 2:
                dist.barrier()
                os.kill(os.getpid(), signal.SIGKILL)
            return made(engine, objective, batch, moment, **options)

        loop.train_step, session.find = step, find
        session.work({"name": config.run.name, "config": config.model_dump(mode="json")})


def train(world: int, *runs: Run) -> None:
    """Runs that come to their ends."""
    run_ranks(world, run_workers, list(runs), timeout_s=LONG_S)
    for run in runs:
        last = rows(run.folder / "events.jsonl")[-1]
        assert last["kind"] == "finished", last


def state(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    return {
        f"{file.relative_to(last)}:{name}": tensor
        for file in sorted(last.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def losses(run: Path) -> dict[int, float]:
    measured = rows(run / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in measured if "train/loss" in row}


def assert_same(run: Path, twin: Path, left_out: int) -> None:
    """The run ended where its twin did, which was made to skip the batch by hand."""
    mine, theirs = state(run), state(twin)
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("head/") for name in mine)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    expected = losses(twin)
    del expected[left_out]
    assert losses(run) == expected
    stored = [RunState.read(each / "checkpoints" / f"step-{STEPS:08d}") for each in (run, twin)]
    assert stored[0].numbers == stored[1].numbers
    assert stored[0].position == stored[1].position == STEPS * BATCH
    (listed,) = rows(run / "left_out.jsonl")
    assert [listed] == [batch.model_dump() for batch in stored[0].left_out]
    assert (listed["step"], listed["position"]) == (left_out, (left_out - 1) * BATCH)
    assert len(listed["samples"]) == len(listed["names"]) == BATCH


def check(step: int, stage: int, back_to: str, runs: tuple[Run, Run]) -> None:
    run = runs[0].folder
    assert_same(run, runs[1].folder, step)
    (told,) = [row for row in rows(run / "events.jsonl") if row["kind"] == "left_out"]
    assert told["message"].startswith(f"step {step}: loss ")
    assert f"going back to {back_to} and leaving this batch out (1 of at most 3)" in told["message"]
    starts = [row["message"] for row in rows(run / "events.jsonl") if row["kind"] == "start"]
    assert "left out" not in starts[0]
    assert f"left out: step {step} (" in starts[1]


def poisoned_and_twin(folder: Path, dataset: Path, step: int, stage: int) -> tuple[Run, Run]:
    path, words = recipe(folder, dataset, step), (f"engine.zero_stage={stage}",)
    name = f"run.name={step}-{stage}"
    return Run(path, (name, *words)), Run(path, (f"{name}-twin", *words), skip=step)


def test_it_ends_where_a_run_ends_that_skips_the_batch_by_hand(
    dataset_path: Path, tmp_path: Path
) -> None:
    runs = poisoned_and_twin(tmp_path, dataset_path, 6, 1)
    train(2, *runs)
    check(6, 1, "step-00000004", runs)


@pytest.mark.slow
def test_at_all_zero_stages_and_before_the_first_checkpoint(
    dataset_path: Path, tmp_path: Path
) -> None:
    cases = [
        (6, 0, "step-00000004"),
        (3, 2, "the start"),
        (8, 2, "step-00000004"),
        (4, 3, "the start"),
        (5, 3, "step-00000004"),
    ]
    pairs = [poisoned_and_twin(tmp_path, dataset_path, step, stage) for step, stage, _ in cases]
    train(2, *[run for pair in pairs for run in pair])
    for case, runs in zip(cases, pairs, strict=True):
        check(*case, runs)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["at once", "on the way"])
def test_killed_after_it_went_back(dies: str, dataset_path: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, dataset_path, 7)
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(2, run_workers, [Run(path, dies=dies)], timeout_s=LONG_S)
    assert len(rows(tmp_path / "runs" / "run" / "left_out.jsonl")) == 1
    # What was left out stays so, whatever is set now.
    runs = Run(path, ("train.on_not_finite=stop",)), Run(path, ("run.name=twin",), skip=7)
    train(2, *runs)
    assert_same(runs[0].folder, runs[1].folder, 7)


@pytest.mark.slow
def test_another_world_size_and_another_run_leave_out_the_same(
    dataset_path: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, dataset_path, 7)
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(2, run_workers, [Run(path, dies="on the way")], timeout_s=LONG_S)
    first = Run(path, ("checkpoint.every_steps=5",))
    run = first.folder
    checkpoint = run / "checkpoints" / "step-00000005"
    words = f"run.resume_from={checkpoint}", "train.on_not_finite=stop"
    other = Run(path, ("run.name=other", *words))
    # Under another seed the same place has other samples.
    third = Run(path, ("run.name=third", "run.seed=5", "objective=margin_softmax", words[0]))
    train(1, first, other, third)
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6, 8]
    assert [batch.step for batch in RunState.read(checkpoint).left_out] == [7]
    assert sorted(losses(other.folder)) == [6, 8]
    theirs = state(other.folder)
    assert [name for name, each in state(run).items() if not torch.equal(each, theirs[name])] == []
    assert rows(other.folder / "left_out.jsonl") == rows(run / "left_out.jsonl")
    assert sorted(losses(third.folder)) == [6, 7, 8]


def known_by_ranks(folder: str) -> list[list[LeftOut]]:
    """What ranks know that see the folder, which only rank 0 may touch."""
    group = dist.new_group(backend="gloo")
    mine = Path(folder) if dist.get_rank() == 0 else Path(folder, "not seen here")
    one = LeftOut(position=16, step=2, reason="loss nan", samples=[3, 4], names=["a", "b"])
    two = one.model_copy(update={"position": 32, "step": 3})
    known = []
    first = LeftOutBatches(mine / "left_out.jsonl", [], group)
    known.append(list(first.batches))
    first.add(one)
    known.append(list(first.batches))
    # A checkpoint may know one that the folder does not, as that of another run does.
    known.append(list(LeftOutBatches(mine / "left_out.jsonl", [two, one], group).batches))
    known.append(list(LeftOutBatches(mine / "left_out.jsonl", [], group).batches))
    return known


def test_all_ranks_know_what_the_file_and_the_checkpoint_know(tmp_path: Path) -> None:
    ranks = run_ranks(2, known_by_ranks, str(tmp_path))
    assert ranks[0] == ranks[1]
    assert [[batch.step for batch in known] for known in ranks[0]] == [[], [2], [2, 3], [2, 3]]
    assert [path.name for path in tmp_path.iterdir()] == ["left_out.jsonl"]
