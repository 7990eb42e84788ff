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
from checkpoint_tensors import differing
from commands import rows
from launcher import run_ranks
from poisoned_batch import BATCH, STEPS, recipe

from manyfaces.configs.load import load
from manyfaces.train import loop, session
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.left_out import LeftOut, LeftOutBatches
from manyfaces.train.step import StepResult

LONG_S = 400


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
        end = rows(run.folder / "events.jsonl")[-1]
        assert end["kind"] == "finished", end


def last(run: Path) -> Path:
    return run / "checkpoints" / f"step-{STEPS:08d}"


def losses(run: Path) -> dict[int, float]:
    measured = rows(run / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in measured if "train/loss" in row}


def assert_same(run: Path, twin: Path, left_out: int) -> None:
    """The run ended where its twin did, which was made to skip the batch by hand."""
    assert list((last(run) / "head").iterdir())
    assert not differing(last(run), last(twin))
    expected = losses(twin)
    del expected[left_out]
    assert losses(run) == expected
    stored = [RunState.read(last(each)) for each in (run, twin)]
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
    assert not differing(last(run), last(other.folder))
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
