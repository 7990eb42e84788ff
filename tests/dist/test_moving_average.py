"""A teacher in the network follows the student at every ZeRO stage: its weights, as any rank reads
them and as the network uses them, are the moving average of the student's."""

from typing import Any

import numpy as np
import pytest
import torch
from launcher import run_ranks
from torch import Tensor, nn

from manyfaces.cluster.world import World
from manyfaces.configs import schema
from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.models.backbones.pixels import to_input
from manyfaces.models.backbones.self_distilled import PROJECTED, ProjectionHead, SelfDistilled
from manyfaces.train.parameter_groups import groups_of

PX, DIM, BATCH, STEPS, MOMENTUM = 16, 8, 6, 3, 0.8
CPU = torch.device("cpu")
MODEL = CustomBackbone(file="not_needed.py", name="Plain", embedding_dim=DIM)
CASES = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 60)]
"""ZeRO stage, and up to how many numbers stage 3 leaves weights whole."""


def network() -> SelfDistilled:
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 49, DIM))
    return SelfDistilled(backbone, ProjectionHead(DIM, 12, 6, 20), "main")


def images(step: int) -> Tensor:
    make = torch.Generator().manual_seed(step)
    return torch.randint(0, 255, (BATCH, PX, PX, 3), dtype=torch.uint8, generator=make)


def followed(stage: int, whole_up_to: int) -> dict[str, Any]:
    """What rank 0 reads of the network behind each step, and what the teacher says of images."""
    from manyfaces.train.engine import Engine

    class Partitioned(Engine):
        def _deepspeed_config(self, *settings: Any) -> dict[str, Any]:
            config = super()._deepspeed_config(*settings)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = whole_up_to
            return config

    world, module = World.current(), network()
    train = schema.Train(batch_size=BATCH, optimizer={"kind": "adamw", "lr": 0.01})
    groups = groups_of(module, train.optimizer)
    settings = schema.Engine(zero_stage=stage)
    engine = Partitioned(module, groups, MODEL, train, settings, CPU, world.size)
    share = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)

    def surrogate(step: int) -> Tensor:
        output = engine.run(images(step)[share])
        return output.embeddings[PROJECTED].square().sum()

    engine.warm_up(lambda: surrogate(99) * 1e-6)
    engine.load_moments(None)
    read, said = [], []
    for step in range(STEPS):
        with module.as_teacher():
            said.append(engine.run(images(50)).embeddings[PROJECTED].numpy())
        engine.backward(surrogate(step))
        engine.step(0.01)
        engine.average(module.teacher, module.student, MOMENTUM)
        read.append({name: w.numpy().copy() for name, w in engine.weights().items()})
    with module.as_teacher():
        said.append(engine.run(images(50)).embeddings[PROJECTED].numpy())
    engine.close()
    return {"read": read, "said": said}


def all_cases() -> list[dict[str, Any]]:
    return [followed(*case) for case in CASES]


@pytest.fixture(scope="module")
def results() -> dict[int, list[list[dict[str, Any]]]]:
    return {world: run_ranks(world, all_cases, timeout_s=240) for world in (1, 3)}


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_teacher_is_the_moving_average(results, case: int) -> None:
    start = {n: w.double().numpy() for n, w in network().state_dict().items()}
    for ranks in results.values():
        teacher = {n: w for n, w in start.items() if n.startswith("teacher.")}
        for read in ranks[0][case]["read"]:
            for name, kept in teacher.items():
                student = read[name.replace("teacher.", "student.", 1)].astype(np.float64)
                teacher[name] = MOMENTUM * kept + (1 - MOMENTUM) * student
                np.testing.assert_allclose(read[name], teacher[name], rtol=1e-5, atol=1e-7)
        moved = [abs(teacher[name] - start[name]).max() for name in teacher]
        assert min(moved) > 1e-4


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_rank_uses_what_is_read(results, case: int) -> None:
    for ranks in results.values():
        for step, read in enumerate(ranks[0][case]["read"]):
            module = network()
            module.load_state_dict({n: torch.from_numpy(w) for n, w in read.items()})
            pixels = to_input(images(50), MODEL)
            with module.as_teacher():
                expected = module(pixels).embeddings[PROJECTED].numpy()
            for rank in ranks:
                found = rank[case]["said"][step + 1]
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_computes_as_in_evaluation_but_for_batchnorm() -> None:
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 49, DIM),
    )  # fmt: skip
    module = SelfDistilled(backbone, ProjectionHead(DIM, 12, 6, 20), "main")
    pixels = to_input(images(0), MODEL)
    with module.as_teacher():
        said = [module(pixels).embeddings["main"] for _ in range(2)]
    assert torch.equal(*said)  # no dropout
    maps = backbone[0](pixels)
    expected = (maps - maps.mean((0, 2, 3), keepdim=True)) / (
        maps.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    np.testing.assert_allclose(
        said[0].numpy(), backbone[4](expected.flatten(1)).detach().numpy(), atol=1e-4
    )
    assert not torch.equal(module.student(pixels).embeddings["main"], said[0])
    assert not module.teacher.backbone[2].training
    assert not module.eval().teacher.backbone[1].training
