"""One rank of two cannot write some of its checkpoints: training goes on after one in the middle,
the run ends with a remedy where it is the last, and the same command goes on from there."""

import errno
import os
import re
import warnings
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import events, recipe, rows
from launcher import run_ranks

from manyfaces.configs.load import load
from manyfaces.train.session import work


def run_twice(config_path: str) -> None:
    """The worker function itself, on a disk that is full for two of its checkpoints; and again."""
    warnings.simplefilter("default")  # DeepSpeed and what it imports warn of torch and themselves
    payload = {"name": "run", "config": load(config_path, []).model_dump(mode="json")}
    real = os.write

    def write(descriptor: int, part: memoryview) -> int:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if dist.get_rank() == 1 and re.search("step-000000(05|30)", path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, part)

    os.write = write  # type: ignore[assignment]
    work(payload)
    os.write = real
    work(payload)


@pytest.mark.slow
def test_training_goes_on_and_the_last_one_must_be_written(
    dataset_path: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, dataset_path)
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    run_ranks(2, run_twice, str(config))
    told = events(run)
    kinds = ["start", "checkpoint_failed", *["checkpoint"] * 4, "stopped"]
    assert [kind for kind, _ in told] == [*kinds, "start", "checkpoint", "finished"]
    place = r"rank 1: disk full: needs .* MB, free .* MB, at .*/step-\d{8}\.tmp-.*/shard-00002-.*"
    assert re.fullmatch(
        rf"checkpoint of step 5 FAILED \({place}\), training goes on; the last good .* is none",
        told[1][1],
    )
    assert re.search(
        rf"step 30 FAILED \({place}\): the last of the run; .* is step-00000025; free some space "
        r"there or see to the disk, and run the same command to resume",
        events[6][1],
    )
    assert "resuming step-00000025" in events[7][1]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (10, 15, 20, 25, 30)]
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 31))
