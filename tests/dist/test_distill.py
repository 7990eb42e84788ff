"""Distillation: the loss and the gradient of the global mean on any number of ranks, with and
without a map between widths."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.objectives.distill import Distill
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.schema import Config, Data
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Objective, Setting

BATCH, PX, CPU = 7, 8, torch.device("cpu")
CASES = [(loss, width) for loss in ("cosine", "mse") for width in (6, 9)]
"""The losses with a teacher whose embeddings are as wide as the student's, 6, and wider."""


def plain(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * PX * PX, width)).float()


def images() -> Tensor:
    return torch.randint(0, 256, (BATCH, PX, PX, 3), generator=torch.Generator().manual_seed(3)).to(
        torch.uint8
    )


LABELS = torch.tensor([0, 1, -1, 2, 3, -1, 4])


def distilled(loss: str, width: int) -> dict[str, Any]:
    """Value and this rank's gradients of a batch of which it has its share."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = MobileFaceNet(embedding_dim=6)
    settings = Distill(teacher="teacher", loss=loss, weight=0.5)
    config = Config(model=model, data=Data(path="faces"), objective=settings)

    def open_encoder(path: str) -> Encoder:
        assert path == "teacher"
        taught = MobileFaceNet(embedding_dim=width, pixel_mean=(100.0, 110.0, 120.0))
        return Encoder(plain(width, seed=1), taught, (PX, PX), CPU, autocast=False)

    setting = Setting(config, 5, (0,), CPU, dist.group.WORLD, open_encoder)
    objective: Objective = settings.build(setting=setting)
    student = plain(6, seed=2)
    torch.manual_seed(4)
    network = objective.network(student)
    first, after = batch_share(BATCH, rank, world)
    own = images()[first:after]

    def run(images_NHWC: Tensor) -> Output:
        output = network((images_NHWC.permute(0, 3, 1, 2).float() - 127.5) / 127.5)
        return output if isinstance(output, Output) else Output({"main": output})

    batch = Batch(0, np.arange(first, after), {"main": own}, LABELS[first:after])
    told: Loss = objective.loss(
        Forward(run, batch.images), batch, Moment(0, BATCH, 0.1, last=rank == world - 1)
    )
    told.surrogate.backward()
    assert bool(told.last)
    assert bool(told.finite)
    grads = {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}
    return {"value": float(told.value), "grads": grads}


def all_cases() -> list[dict[str, Any]]:
    return [distilled(*case) for case in CASES]


def test_two_of_one_teacher_have_a_map_each() -> None:
    """A sum of both losses to one wider teacher."""
    model = MobileFaceNet(embedding_dim=6)
    parts = tuple(Distill(teacher="teacher", loss=loss) for loss in ("cosine", "mse"))
    config = Config(model=model, data=Data(path="faces"), objective=Sum(of=parts))

    def open_encoder(path: str) -> Encoder:
        taught = MobileFaceNet(embedding_dim=9)
        return Encoder(plain(9, seed=1), taught, (PX, PX), CPU, autocast=False)

    objective = config.objective.build(setting=Setting(config, 5, (0,), CPU, None, open_encoder))
    network = objective.network(plain(6, seed=2))

    def run(images_NHWC: Tensor) -> Output:
        return network(images_NHWC.permute(0, 3, 1, 2).float())

    batch = Batch(0, np.arange(BATCH), {"main": images()}, LABELS)
    told = objective.loss(Forward(run, batch.images), batch, Moment(0, BATCH, 0.1))
    assert bool(told.finite)
    told.surrogate.backward()
    maps = [p for name, p in network.named_parameters() if name.endswith("map.weight")]
    assert len(maps) == 2
    for weight in maps:
        assert weight.grad is not None
        assert bool(weight.grad.any())


@pytest.fixture(scope="module")
def results() -> dict[int, list[list[dict[str, Any]]]]:
    return {world: run_ranks(world, all_cases) for world in (1, 3)}


@pytest.mark.parametrize("case", range(len(CASES)))
def test_value_and_gradient_are_those_of_the_global_mean(results, case: int) -> None:
    loss, width = CASES[case]
    student, teacher = plain(6, seed=2).double(), plain(width, seed=1).double()
    torch.manual_seed(4)
    mapping = nn.Linear(6, width, bias=False).double() if width != 6 else nn.Identity()
    pixels_NCHW = images().permute(0, 3, 1, 2).double()
    mean = torch.tensor([100.0, 110.0, 120.0]).double().view(3, 1, 1)
    mine_ND = mapping(student((pixels_NCHW - 127.5) / 127.5))
    taught_ND = teacher((pixels_NCHW - mean) / 127.5).detach()
    valid_N = LABELS != -1
    if loss == "cosine":
        unit_ND, taught_ND = (nn.functional.normalize(each) for each in (mine_ND, taught_ND))
        distance_N = 1 - (unit_ND * taught_ND).sum(1)
    else:
        distance_N = (mine_ND - taught_ND).pow(2).mean(1)
    expected = 0.5 * distance_N[valid_N].mean()
    expected.backward()
    gradients = [p.grad for net in (student, mapping) for p in net.parameters()]

    for ranks in results.values():
        values = [rank[case]["value"] for rank in ranks]
        assert values == pytest.approx([float(expected.detach())] * len(ranks), rel=1e-6)
        # The engine averages over the ranks.
        names = ranks[0][case]["grads"]
        assert len(names) == len(gradients)
        found = {n: np.mean([rank[case]["grads"][n] for rank in ranks], axis=0) for n in names}
        in_order = sorted(found, key=lambda name: name.startswith("map"))
        for name, gradient in zip(in_order, gradients, strict=True):
            assert gradient is not None
            np.testing.assert_allclose(found[name], gradient.numpy(), rtol=2e-4, atol=1e-7)
