"""A run that is asked to stop saves what was trained, says how to go on, and goes on bit for bit."""

import json
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from commands import (
    events,
    forked,
    recipe,
    rows,
    wait_until,
)
from launcher import run_ranks

from manyfaces.cluster import signals
from manyfaces.configs.load import load
from manyfaces.train.folder import RunFolder
from manyfaces.train.session import work
from manyfaces.train.stopping import forget_session

PROCESS = {"workers": 1, "launcher": "process"}


def losses(run: Path) -> list[tuple[int, float]]:
    found = rows(run / "metrics.jsonl")
    return [(row["step"], row["train/loss"]) for row in found if "train/loss" in row]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("checkpoints/*/COMMIT.json"))


def mlflow_status(run: Path) -> str:
    from mlflow import MlflowClient

    known = json.loads((run / "mlflow.json").read_text())
    return str(MlflowClient(known["uri"]).get_run(known["run_id"]).info.status)


def stopped_after_3_steps(folder: Path, dataset_path: Path) -> tuple[Path, Path, str]:
    """The recipe and the run of one process that was sent SIGTERM, and what it has printed."""
    config = recipe(
        folder,
        dataset_path,
        cluster=PROCESS,
        train={"epochs": 2},
        checkpoint={"every_steps": 1000, "keep": 20},
    )
    run = folder / "runs" / "run"

    def stop(pid: int) -> None:
        wait_until(lambda: len(losses(run)) >= 3)
        os.kill(pid, signal.SIGTERM)

    stopped = forked("train", config, meanwhile=stop)
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    return config, run, stopped.stdout + stopped.stderr


@pytest.mark.filterwarnings("ignore")  # MLflow's store warns of its own database layer
@pytest.mark.slow
def test_sigterm_saves_the_step_that_is_made(dataset_path: Path, tmp_path: Path) -> None:
    _, run, text = stopped_after_3_steps(tmp_path, dataset_path)
    (name,) = checkpoints(run)
    assert name == f"step-{losses(run)[-1][0]:08d}"
    assert f"stopped by SIGTERM; the same command goes on from {run}/checkpoints/{name}" in text
    assert "Traceback" not in text
    assert mlflow_status(run) == "KILLED"
    assert [kind for kind, _ in events(run)] == ["start", "stopping", "checkpoint", "interrupted"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_same_command_goes_on_bit_for_bit(dataset_path: Path, tmp_path: Path) -> None:
    config, run, _ = stopped_after_3_steps(tmp_path, dataset_path)
    (name,) = checkpoints(run)
    again = forked("train", config)
    assert again.returncode == 0, again.stderr
    assert f"resuming {name}" in again.stdout
    twin = forked("train", config, "run.name=never-stopped")
    assert twin.returncode == 0, twin.stderr
    assert losses(run) == losses(run.with_name("never-stopped"))
    assert mlflow_status(run) == "FINISHED"


def run_and_signal_one(config_path: str, at: str = "step") -> list[str]:
    """The worker function on each rank; rank 1 alone is signalled, in its seventh step or in the
    first evaluation."""
    # DeepSpeed and what it imports warn of torch and of themselves.
    warnings.simplefilter("default")
    from manyfaces.train import loop

    name = "_step" if at == "step" else "_is_evaluating"
    real, calls = getattr(loop, name), []

    def signalled(*args: Any, **more: Any) -> Any:
        calls.append(name)
        if dist.get_rank() == 1 and len(calls) == (7 if at == "step" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.5)
        return real(*args, **more)

    setattr(loop, name, signalled)
    with signals.listening(60):
        work({"name": "run", "config": load(config_path, []).model_dump(mode="json")})
    setattr(loop, name, real)
    return calls


def run_and_go_on(config_path: str) -> None:
    """Stopped in an evaluation, and run again to the end."""
    run_and_signal_one(config_path, "evaluation")
    config = load(config_path, [])
    forget_session(RunFolder.of(config))
    dist.barrier()
    with signals.listening(60):
        work({"name": "run", "config": config.model_dump(mode="json")})


def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    dataset_path: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, dataset_path, checkpoint={"every_steps": 1000, "keep": 20})
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    calls = run_ranks(2, run_and_signal_one, str(config))
    # The signal comes when the seventh step has begun on rank 1: the eighth carries it, or the
    # seventh where rank 0 is later to begin it and learns of the request first.
    steps = {len(each) for each in calls}
    assert steps in ({7}, {8})
    assert checkpoints(run) == [f"step-{steps.pop():08d}"]
    told = events(run)
    assert [kind for kind, _ in told] == ["start", "stopping", "checkpoint", "interrupted"]
    assert told[-1][1].startswith("stopped by SIGTERM; the same command goes on from ")


@pytest.mark.slow
def test_a_stop_in_an_evaluation_saves_the_steps_before_it(
    dataset_path: Path, tmp_path: Path
) -> None:
    made = forked("data", "pairs", dataset_path, tmp_path / "pairs.bin", "--count", "40")
    assert made.returncode == 0, made.stderr
    config = recipe(
        tmp_path,
        dataset_path,
        train={"epochs": 1},
        checkpoint={"every_steps": 1000, "keep": 20},
        evaluation={"every_steps": 3, "batch_size": 4, "pairs": [str(tmp_path / "pairs.bin")]},
    )
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    run_ranks(2, run_and_go_on, str(config))
    assert checkpoints(run) == ["step-00000003", "step-00000008"]
    kinds = [kind for kind, _ in events(run) if kind != "checkpoint"]
    assert kinds == ["start", "stopping", "interrupted", "start", "finished"]
    evaluated = [row["step"] for row in rows(run / "metrics.jsonl") if "pairs/auc" in row]
    assert evaluated == [3, 6, 8]
