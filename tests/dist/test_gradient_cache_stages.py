"""Steps in micro-batches under DeepSpeed on real gloo ranks, at every ZeRO stage, against one large
batch in plain torch."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import Tensor, nn

from manyfaces.cluster.world import World
from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.configs.errors import UserError
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.schema import Config, Data, Head, Objective, Train
from manyfaces.configs.schema import Engine as EngineSettings
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.pixels import to_input
from manyfaces.train.objectives.objective import Forward, Moment, Setting

PX, D, B, CLASSES, STEPS, LR, MICRO = 32, 8, 18, 300, 3, 0.3, 3
MODEL = CustomBackbone(file="not_needed.py", name="Plain", embedding_dim=D)
CPU = torch.device("cpu")
SOFTMAX: Objective = MarginSoftmax()
OBJECTIVES: dict[str, Objective] = {
    "softmax": SOFTMAX,
    "sum": Sum(of=(SOFTMAX, Triplet(margin=0.4, weight=0.5))),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "momentum": 0.9},
    "adamw": {"kind": "adamw", "lr": 0.01},
}


def network() -> nn.Module:
    """Without BatchNorm, whose statistics would be of a micro-batch."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.GroupNorm(1, 4), nn.PReLU(4), nn.Flatten(),
        nn.Linear(4 * 15 * 15, D),
    )  # fmt: skip


def config_of(objective: Objective, optimizer: str, stage: int) -> Config:
    return Config(
        model=MODEL,
        data=Data(path="faces", image_px=PX, order=PK(images_per_identity=2)),
        head=Head(scale=16.0, sample_rate=0.5),
        train=Train(
            batch_size=B,
            micro_batch_size=MICRO,
            optimizer=OPTIMIZERS[optimizer],  # type: ignore[arg-type]
            clip_norm=1.0,
        ),
        engine=EngineSettings(zero_stage=stage),
        objective=objective,
    )


def objective_of(config: Config, group: Any) -> Any:
    setting = Setting(config, CLASSES, (0,), CPU, group, open_encoder=lambda _: None)  # type: ignore[arg-type,return-value]
    return config.objective.build(setting=setting)


def batch_at(step: int, rank: int, world_size: int) -> Batch:
    random = torch.Generator().manual_seed(step)
    images = torch.randint(0, 255, (B, PX, PX, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES // 30, (B,), generator=random)
    labels[4] = -1
    share = slice(*batch_share(B, rank, world_size))
    return Batch(step * B, np.arange(B)[share], {"main": images[share]}, labels[share])


def run_cases(cases: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    from manyfaces.train.build import dry_runs
    from manyfaces.train.engine import Engine
    from manyfaces.train.parameter_groups import groups_of
    from manyfaces.train.step import train_step

    class Partitioned(Engine):
        """DeepSpeed would leave so small weights whole at stage 3."""

        def _deepspeed_config(self, *settings: Any) -> dict[str, Any]:
            made = super()._deepspeed_config(*settings)
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return made

    world, facts = World.current(), []
    for objective, optimizer, stage in cases:
        config = config_of(OBJECTIVES[objective], optimizer, stage)
        backbone, made = network(), objective_of(config, dist.group.WORLD)
        engine = Partitioned(
            backbone, groups_of(backbone, config.train.optimizer), MODEL, config.train,
            config.engine, CPU, world.size,
        )  # fmt: skip
        count = config.train.num_micro_batches(world.size)
        assert count > 2
        engine.warm_up(*dry_runs(config, world, made, engine.run))
        engine.load_moments(None)
        losses, norms = [], []
        for step in range(STEPS):
            done = train_step(
                engine, made, batch_at(step, world.rank, world.size), Moment(step * B, B, LR),
                seed=0, rank=world.rank, num_micro_batches=count,
            )  # fmt: skip
            losses.append(float(done.loss))
            norms.append(done.grad_norm)
        moments = engine.read_moments()
        weights = {name: tensor.float().numpy().copy() for name, tensor in engine.weights().items()}
        rows = made.state()
        part = next(iter(rows.values())).tensors
        facts.append(
            {
                "losses": losses,
                "norms": norms,
                "weights": weights,
                "steps": float(moments["step"]) if moments else None,
                "head": {name: tensor.numpy().copy() for name, tensor in part.items()},
            }
        )
        engine.close()
    return facts


def told_of_another() -> str:
    """What rank 0 says where the network of the last rank is another in the second pass."""
    from manyfaces.train.engine import Engine
    from manyfaces.train.gradient_cache import GradientCache
    from manyfaces.train.parameter_groups import groups_of

    world, backbone, calls = World.current(), network(), []
    config = config_of(SOFTMAX, "sgd", 0)
    engine = Engine(
        backbone, groups_of(backbone, config.train.optimizer), MODEL, config.train,
        config.engine, CPU, world.size,
    )  # fmt: skip

    def run(images_NHWC: Tensor) -> Output:
        calls.append(1)
        output = engine.run(images_NHWC)
        factor = len(calls) if world.rank == world.size - 1 else 1
        return Output({"main": factor * output.embeddings["main"]})

    cache = GradientCache(engine, run, torch.manual_seed, 2)
    output = cache.run(batch_at(0, world.rank, world.size).images["main"])
    cache.backward(output.embeddings["main"].sum())
    with pytest.raises(UserError) as told:
        cache.check()
    return str(told.value)


def num_compiled() -> list[int]:
    """How many graphs of the network there are after the warm-up, and after a step more."""
    from torch._dynamo.testing import CompileCounter

    from manyfaces.train.build import dry_runs
    from manyfaces.train.engine import Engine
    from manyfaces.train.parameter_groups import groups_of
    from manyfaces.train.step import train_step

    world, backbone, counter, counts = World.current(), network(), CompileCounter(), []
    config = config_of(SOFTMAX, "sgd", 1)
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 14})})
    made = objective_of(config, dist.group.WORLD)
    engine = Engine(
        backbone, groups_of(backbone, config.train.optimizer), MODEL, config.train,
        config.engine, CPU, world.size,
    )  # fmt: skip
    engine._engine.compile(backend=counter)  # without a C++ compiler
    warnings.simplefilter("ignore")  # of the compiler, which reads .grad of what is no leaf
    engine.warm_up(*dry_runs(config, world, made, engine.run))
    counts.append(counter.frame_count)
    batch = batch_at(0, world.rank, world.size)
    images = {"main": batch.images["main"][:14]}
    batch = Batch(0, batch.ids_N[:14], images, batch.labels_N[:14])
    train_step(
        engine, made, batch, Moment(0, 14, LR), seed=0, rank=0,
        num_micro_batches=config.train.num_micro_batches(world.size),
    )  # fmt: skip
    return [*counts, counter.frame_count]


def one_large_batch(objective: str, optimizer: str) -> dict[str, Any]:
    """In plain torch: one process, one forward pass, one backward pass."""
    config = config_of(OBJECTIVES[objective], optimizer, 0)
    backbone, made = network(), objective_of(config, None)
    torch_optimizer = config.train.optimizer.build(
        params=[
            {"params": [p], "weight_decay": config.train.optimizer.weight_decay}
            for p in backbone.parameters()
        ]
    )
    losses, norms = [], []
    for step in range(STEPS):
        batch = batch_at(step, 0, 1)

        def run(images_NHWC: Tensor) -> Output:
            return Output({"main": backbone(to_input(images_NHWC, MODEL))})

        loss = made.loss(Forward(run, batch.images), batch, Moment(step * B, B, LR))
        loss.surrogate.backward()
        norms.append(float(nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)))
        for group in torch_optimizer.param_groups:
            group["lr"] = LR
        torch_optimizer.step()
        torch_optimizer.zero_grad()
        losses.append(float(loss.value))
    head = next(iter(made.state().values())).tensors
    return {
        "losses": losses,
        "norms": norms,
        "weights": {name: p.detach().numpy() for name, p in backbone.named_parameters()},
        "head": {name: tensor.numpy() for name, tensor in head.items()},
    }


def judge(world_size: int, cases: list[tuple[str, str, int]]) -> None:
    ranks = run_ranks(world_size, run_cases, cases, timeout_s=300)
    for number, (objective, optimizer, _) in enumerate(cases):
        expected, facts = one_large_batch(objective, optimizer), [rank[number] for rank in ranks]
        for rank in facts:
            np.testing.assert_allclose(rank["losses"], expected["losses"], rtol=1e-5)
            np.testing.assert_allclose(rank["norms"], expected["norms"], rtol=1e-4)
        first = facts[0]
        if optimizer == "adamw":
            assert first["steps"] == STEPS
        head = {
            name: np.concatenate([rank["head"][name] for rank in facts])
            for name in expected["head"]
        }
        for name, tensor in {**expected["weights"], **expected["head"]}.items():
            found = {**first["weights"], **head}[name]
            limit = 1e-5 if optimizer == "sgd" else 1e-3  # Adam divides by its own rounding
            assert np.linalg.norm(found - tensor) <= limit * np.linalg.norm(tensor), name


def test_a_step_in_micro_batches_is_that_of_one_large_batch() -> None:
    judge(1, [("softmax", "sgd", 2)])


@pytest.mark.slow
def test_every_rank_tells_that_the_network_of_one_is_another() -> None:
    told = run_ranks(2, told_of_another)
    assert told[0] == told[1]
    assert "other embeddings" in told[0]


@pytest.mark.slow
def test_the_warm_up_compiles_all_that_a_step_runs() -> None:
    ((before, after),) = run_ranks(1, num_compiled)
    assert before == after > 0


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_it_is_at_every_stage(world_size: int) -> None:
    judge(
        world_size,
        [
            *(("softmax", optimizer, stage) for optimizer in OPTIMIZERS for stage in range(4)),
            *(("sum", "sgd", stage) for stage in range(4)),
        ],
    )
