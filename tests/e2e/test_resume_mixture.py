"""A mixture on real ranks, killed and resumed at other world sizes: every step sees what it sees in
a run that was never stopped."""

import json
import os
import signal
import time
import warnings
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import recipe, rows
from launcher import run_ranks

from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import open_data
from manyfaces.data.feed.loader import Batch, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.train import loop
from manyfaces.train.session import work

pytestmark = pytest.mark.slow
STEPS, BATCH = 17, 64

Seen = dict[int, list[tuple[int, int, int]]]
"""By position of the global batch: sample id, label and the CRC-32 of the augmented pixels of each
of its samples."""


def run_worker(config_path: str, seen: str, dies_at: int | None, behind: str) -> None:
    """The worker function itself, with each rank's batches written down; kill -9 before the step
    `dies_at`, once `behind` is committed."""
    warnings.simplefilter(
        "default"
    )  # DeepSpeed and what it imports warn of torch and of themselves
    config = load(config_path, [])
    real, file = loop.train_step, Path(f"{seen}-{dist.get_rank()}.jsonl")

    def step(engine, objective, batch, moment, **options):
        with file.open("a") as out:
            out.write(json.dumps([batch.position, *columns(batch)]) + "\n")
        if batch.position == dies_at:
            dist.barrier()  # all have written what they see
            while not Path(
                config.run.dir, config.run.name, "checkpoints", behind, "COMMIT.json"
            ).exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(engine, objective, batch, moment, **options)

    loop.train_step = step
    work({"name": config.run.name, "config": config.model_dump(mode="json")})


def seen_by(world: int, prefix: Path) -> Seen:
    """The ranks' shares put together in rank order."""
    whole: Seen = {}
    for rank in range(world):
        for line in Path(f"{prefix}-{rank}.jsonl").read_text().splitlines():
            position, *share = json.loads(line)
            whole.setdefault(position, []).extend(zip(*share, strict=True))
    return whole


def stream(config: Config, folder: Path) -> Seen:
    """What one rank that is never stopped is given."""
    dataset = open_data(config.data)
    with Loader(
        dataset,
        config.data,
        seed=config.run.seed,
        batch_size=BATCH,
        rank=0,
        world_size=1,
        position=0,
        end=STEPS * BATCH,
        device=torch.device("cpu"),
        quarantine=Quarantine(folder / "quarantine.jsonl", dataset, 0.0),
    ) as loader:
        return {batch.position: list(zip(*columns(batch), strict=True)) for batch in loader}


def columns(batch: Batch) -> tuple[list[int], list[int], list[int]]:
    images = [zlib.crc32(image.numpy().tobytes()) for image in batch.images["main"]]
    return batch.ids_N.tolist(), batch.labels_N.tolist(), images


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Path:
    """20 identities x 6 images, two thirds of the stream, and 10 x 5; a block of 1,000 slots ends
    on the way."""
    synthesise(tmp_path / "other", 10, 5, seed=8, processes=1, shard_images=20)
    mixture = [
        {"path": str(dataset_path), "weight": 2},
        {"path": str(tmp_path / "other"), "weight": 1},
    ]
    return recipe(
        tmp_path,
        tmp_path,
        data={
            "path": "",
            "mixture": mixture,
            "image_px": 32,
            "order": {"kind": "shuffle", "window_shards": 2},
        },
        train={"batch_size": BATCH, "epochs": STEPS * BATCH / 170},
        checkpoint={"every_steps": 5, "keep": 20},
    )


def test_two_ranks_then_one_then_two_see_what_one_sees(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    sessions = []
    for world, dies_at, behind in (
        (2, 7, "step-00000005"),
        (1, 13, "step-00000010"),
        (2, None, ""),
    ):
        prefix = tmp_path / f"session{len(sessions)}"
        if dies_at is None:
            run_ranks(world, run_worker, str(config), str(prefix), None, behind)
        else:
            with pytest.raises(RuntimeError, match=r"a rank died without a word"):
                run_ranks(world, run_worker, str(config), str(prefix), dies_at * BATCH, behind)
        sessions.append(seen_by(world, prefix))
    assert [[min(seen) // BATCH, max(seen) // BATCH] for seen in sessions] == [
        [0, 7],
        [5, 13],
        [10, STEPS - 1],
    ]
    never_stopped = stream(load(str(config), []), tmp_path)
    assert len(never_stopped) == STEPS
    assert {label < 20 for slots in never_stopped.values() for _, label, _ in slots} == {
        True,
        False,
    }, "people of both datasets"
    for seen in sessions:
        assert seen == {position: never_stopped[position] for position in seen}
    assert [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row] == list(
        range(1, STEPS + 1)
    )
