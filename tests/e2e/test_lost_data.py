"""One rank of two loses its data in the middle: all stop together behind a checkpoint, and the run
goes on when the data are back."""

import json
import warnings
from pathlib import Path

import torch.distributed as dist
from commands import events, recipe, rows
from launcher import run_ranks

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.data.feed import loader
from manyfaces.train.session import work

LOST_AT = 7 * 16


def run_worker(config_path: str) -> None:
    """The worker function itself, with a store that fails on rank 1 from the eighth batch on; and
    again with a whole one."""
    warnings.simplefilter(
        "default"
    )  # DeepSpeed and what it imports warn of torch and of themselves
    config = load(config_path, [])
    payload = {"name": "run", "config": config.model_dump(mode="json")}
    real = loader.Loader._begin

    def begin(self: loader.Loader, position: int) -> loader._Begun:
        if dist.get_rank() == 1 and position >= LOST_AT:
            raise UserError("shard-000001.tar: gone")
        return real(self, position)

    loader.Loader._begin = begin  # type: ignore[method-assign]
    work(payload)
    loader.Loader._begin = real  # type: ignore[method-assign]
    work(payload)


def test_all_ranks_stop_behind_a_checkpoint(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, dataset_path, checkpoint={"every_steps": 1000, "keep": 20})
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    run_ranks(2, run_worker, str(config))
    told = [each for each in events(run) if each[0] != "checkpoint"]
    assert [kind for kind, _ in told] == ["start", "stopped", "start", "finished"]
    assert told[1][1] == "rank 1: shard-000001.tar: gone"
    assert "resuming step-00000007 at sample 112" in told[2][1]
    state = json.loads((run / "checkpoints" / "step-00000007" / "state.json").read_text())
    assert state["position"] == LOST_AT
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, 31)
    )
