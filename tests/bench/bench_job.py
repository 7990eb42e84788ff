"""Images a second of the input path alone, the backbone alone, the objective alone, and the
whole job, in one table.

    python tests/bench/bench_job.py configs/demo.yaml [path.to.key=value ...] [--steps 20] [--json]

In this one process, with the recipe's threads; the whole job is the train loop itself, without
evaluation and checkpoints.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.cluster.world import World
from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset, open_data
from manyfaces.data.feed.loader import Batch, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.view import main_view
from manyfaces.models.backbones.output import Output
from manyfaces.train.build import build
from manyfaces.train.evaluation.decoding import worker_decode_threads
from manyfaces.train.objectives.objective import Forward, Moment
from manyfaces.train.record import NoRecord
from manyfaces.train.step import train_step

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if (
        not torch.cuda.is_available() and not KEEP_MEMORY.items() <= os.environ.items()
    ):  # as CPU workers start
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    config = load(arguments.config, arguments.overrides)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
    )
    torch.set_num_threads(config.cluster.threads_per_worker)
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Path(folder) / "quarantine.jsonl"
        rates = measure(config, open_data(config.data), arguments.steps, quarantine)
    dist.destroy_process_group()
    if arguments.json:
        print(json.dumps(rates))  # noqa: T201
        return
    table = Table("part", "images/s", "of the whole job's")
    for part, rate in rates.items():
        table.add_row(part, f"{rate:,.0f}", f"{rate / rates['whole job']:.2f} x")
    Console().print(table)
    slowest = min((p for p in rates if p != "whole job"), key=rates.__getitem__)
    Console().print(f"the slowest part is the {slowest}")


def measure(config: Config, dataset: Dataset, steps: int, quarantine: Path) -> dict[str, float]:
    """Images a second of each part; samples that cannot be decoded are noted in `quarantine`."""
    world, batch_size = World.current(), config.train.batch_size
    engine, _, objective = build(config, world, dataset, None, dist.group.WORLD, NoRecord())

    def loader(count: int) -> Loader:
        return Loader(
            dataset,
            config.data,
            views=objective.views(main_view(config.data)),
            seed=0,
            batch_size=batch_size,
            rank=0,
            world_size=1,
            position=0,
            end=count * batch_size,
            device=world.device,
            quarantine=Quarantine(quarantine, dataset, 0.0),
            decode_threads=worker_decode_threads(config),
        )

    def step(batch: Batch) -> None:
        moment = Moment(batch.position, batch_size, lr=1e-3)
        train_step(engine, objective, batch, moment, seed=0, rank=0)

    # Enough batches to outweigh what was decoded ahead while the first was waited for.
    input_steps = max(10 * steps, 200)
    with loader(input_steps + WARM_UP) as batches:
        stream = iter(batches)
        input_rate = rate(lambda: next(stream), input_steps, batch_size, world.device)
    with loader(1) as batches:
        batch = next(iter(batches))
    output = engine.run(batch.images["main"])
    fixed = Output({name: each.detach() for name, each in output.embeddings.items()})

    def network() -> None:
        engine.backward(objective.dry_run(Forward(engine.run, batch.images)))
        engine.step(0.0)

    def loss() -> None:
        objective.loss(Forward(lambda _: fixed, batch.images), batch, Moment(0, batch_size, lr=0.0))

    rates = {
        "input path": input_rate,
        "backbone": rate(network, steps, batch_size, world.device),
        "objective": rate(loss, steps, batch_size, world.device),
    }
    with loader(steps + WARM_UP) as batches:
        stream = iter(batches)
        rates["whole job"] = rate(lambda: step(next(stream)), steps, batch_size, world.device)
    return rates


def rate(work: Callable[[], object], steps: int, images: int, device: torch.device) -> float:
    """Images a second of `steps` calls after the warm-up."""
    for _ in range(WARM_UP):
        work()
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    _synchronise(device)
    return steps * images / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
