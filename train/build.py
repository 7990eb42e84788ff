"""What trains: the engine, the network in it and the objective, fresh or from a checkpoint."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from manyfaces.cluster.world import World, on_all_ranks
from manyfaces.configs import rng
from manyfaces.configs.schema import Config
from manyfaces.configs.split import batch_share
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.feed.view import main_view
from manyfaces.models.backbones.output import Output
from manyfaces.train.checkpoint.finder import Found, load_parts
from manyfaces.train.checkpoint.layout import read_optimizer
from manyfaces.train.checkpoint.network import Network, build_backbone
from manyfaces.train.checkpoint.progress import nothing, watched
from manyfaces.train.engine import Engine
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.objectives.objective import Forward, Objective, Setting
from manyfaces.train.record import Record
from manyfaces.train.startup import Startup


def build(
    config: Config,
    world: World,
    dataset: Dataset,
    found: Found | None,
    group: dist.ProcessGroup,
    record: Record,
    beat: Callable[[], None] = nothing,
    startup: Startup | None = None,
) -> tuple[Engine, Network, Objective]:
    """The engine, the network in it and the objective, fresh or restored. A fresh start takes the
    same path with empty moments; what `model.init` brought to it is recorded. `beat` is called
    while a checkpoint is read, and `startup` told of what is done. Collective."""
    startup = startup or Startup()
    objective, network = watched(
        lambda: _objective_and_network(config, world, dataset, found), group, beat
    )
    if (matched := network.built.matched) is not None and found is None:
        columns = ["model.init", "weights", "of them"]
        table = {"columns": columns, "rows": matched.rows()}
        record.event("init", f"model.init {matched}", table=table)
    startup.done("network")
    engine = Engine(
        network.module,
        on_all_ranks(lambda: objective.groups(network.module, config.train.optimizer)),
        config.model,
        config.train,
        config.engine,
        world.device,
        world.size,
    )
    startup.done("engine")
    engine.warm_up(*dry_runs(config, world, objective, engine.run))
    startup.done("warm-up")
    moments = watched(lambda: read_optimizer(found.path) if found else None, group, beat)
    engine.load_moments(moments)
    startup.done("optimizer")
    if found is not None:
        load_parts(found.path, objective.state(), group, beat)
        objective.restore(found.state.numbers, found.state.config)
    objective.forget(torch.from_numpy(read_forgotten(dataset).identities))
    startup.done("head")
    return engine, network, objective


def dry_runs(
    config: Config, world: World, objective: Objective, run: Callable[[Tensor], Output]
) -> list[Callable[[], Tensor]]:
    """The objective's dry run for the smallest and the largest micro-batch of this rank, in this
    order, which leaves the most memory for the end; one where the batch is not divided."""
    first, after = batch_share(config.train.batch_size, world.rank, world.size)
    num_images, count = after - first, config.train.num_micro_batches(world.size)
    largest = -(-num_images // count)
    images = {
        name: torch.zeros(largest, *view.image_hw, 3, dtype=torch.uint8, device=world.device)
        for name, view in objective.views(main_view(config.data)).items()
    }

    def dry_run(size: int) -> Tensor:
        return objective.dry_run(Forward(run, {name: each[:size] for name, each in images.items()}))

    # All ranks make as many, as at stage 3 each is collective, though on some both may be equal.
    sizes = [num_images // count, largest] if count > 1 else [largest]
    return [partial(dry_run, size) for size in sizes]


def _objective_and_network(
    config: Config, world: World, dataset: Dataset, found: Found | None
) -> tuple[Objective, Network]:
    """The objective and the network with the weights to start from. No collective: what fails here
    may fail on one rank alone."""
    objective: Objective = config.objective.build(
        setting=Setting(
            config,
            dataset.manifest.num_identities,
            tuple(part.first_class for part in dataset.parts),
            world.device,
            dist.group.WORLD,
            lambda file: open_encoder(Path(file), world.device),
            dataset.manifest.num_images,
        )
    )
    torch.manual_seed(rng.key(config.run.seed, rng.Stream.NETWORK_WEIGHTS) >> 1)
    built = build_backbone(config, fresh=found is None)
    module = objective.network(built.backbone)
    network = Network(module, built, objective.evaluated(built.backbone))
    if found is not None:
        network.load(found.path, found.state, config.model.init)
    return objective, network
