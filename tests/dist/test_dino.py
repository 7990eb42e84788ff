"""DINO on any number of ranks: loss, gradient, running mean and metrics beside loops over views,
samples and prototypes in float64, and the collectives of a step."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.multi_crop import MultiCrop
from manyfaces.configs.objectives.dino import DINO
from manyfaces.configs.schema import Config, Data, Train
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.data.feed.view import main_view
from manyfaces.models.backbones.self_distilled import ProjectionHead, SelfDistilled
from manyfaces.train.objectives.objective import Forward, Moment, Objective, Setting

BATCH, PX, DIM, CPU = 7, 32, 6, torch.device("cpu")
K, LOCAL = 10, 3
POSITION, IMAGES = 14, 70
LABELS = torch.tensor([0, 0, -1, 2, 3, -1, 4])
CASES: list[dict[str, Any]] = [
    {"centring": "mean"},
    {"centring": "sinkhorn", "warmup_teacher_epochs": 1, "warmup_teacher_temperature": 0.1},
    {"centring": "mean", "koleo_weight": 0.3, "weight": 0.5},
    {"centring": "mean", "freeze_prototypes_epochs": 1},
]
COLLECTIVES = [{"all_reduce": 1}, {"all_reduce": 4}, {"all_reduce": 1, "gather": 1}]


def settings_of(case: dict[str, Any]) -> DINO:
    small = {"prototypes": K, "hidden_dim": 8, "bottleneck_dim": 5, "freeze_prototypes_epochs": 0}
    return DINO(crops=MultiCrop(local_crops=LOCAL), **(small | case))


def plain() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, DIM))


def moved(network: SelfDistilled) -> None:
    """Give student and teacher weights of their own, large enough for probabilities to differ."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))


def images() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(3)
    names = ["global_0", "global_1", *(f"local_{n}" for n in range(LOCAL))]
    shape = (BATCH, PX, PX, 3)
    return {n: torch.randint(0, 256, shape, generator=make).to(torch.uint8) for n in names}


def floats(images_NHWC: Tensor) -> Tensor:
    return (images_NHWC.permute(0, 3, 1, 2).double() - 127.5) / 127.5


def one(case: dict[str, Any]) -> dict[str, Any]:
    """What a step tells of a batch of which each rank has its share, and this rank's gradients."""
    rank, world = dist.get_rank(), dist.get_world_size()
    settings = settings_of(case)
    config = Config(
        model=MobileFaceNet(embedding_dim=DIM),
        data=Data(path="faces", image_px=PX),
        objective=settings,
        train=Train(batch_size=BATCH, epochs=2),
    )
    setting = Setting(config, 5, (0,), CPU, dist.group.WORLD, None, IMAGES)  # type: ignore[arg-type]
    objective: Objective = settings.build(setting=setting)
    network = objective.network(plain())
    moved(network)
    objective.state()["dino"].tensors["center"].copy_(torch.linspace(-0.2, 0.3, K))
    first, after = batch_share(BATCH, rank, world)
    own = {name: each[first:after] for name, each in images().items()}
    assert list(objective.views(main_view(config.data))) == list(own)
    counts: dict[str, int] = {}
    reduce = dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        counts["all_reduce"] = counts.get("all_reduce", 0) + 1
        return reduce(*arguments, **named)

    ranks = objective.ranks
    gather = ranks.gather

    def gathered(*arguments: Any) -> Tensor:
        counts["gather"] = counts.get("gather", 0) + 1
        return gather(*arguments)

    ranks.gather, dist.all_reduce = gathered, counted
    batch = Batch(POSITION, np.arange(first, after), own, LABELS[first:after])
    last = rank == world - 1
    told = objective.loss(
        Forward(lambda each: network(floats(each).float()), own),
        batch,
        Moment(POSITION, BATCH, 0.1, last),
    )
    dist.all_reduce = reduce
    told.surrogate.backward()
    assert bool(told.last)
    assert bool(told.finite)
    assert all(p.grad is None for p in network.teacher.parameters())
    return {
        "value": float(told.value),
        "grads": {n: p.grad.numpy() for n, p in network.student.named_parameters()},
        "center": objective.state()["dino"].tensors["center"].numpy(),
        "metrics": {name: float(value) for name, value in told.metrics.items()},
        "collectives": counts,
    }


def all_cases() -> list[dict[str, Any]]:
    return [one(case) for case in CASES]


@pytest.fixture(scope="module")
def results() -> dict[int, list[list[dict[str, Any]]]]:
    return {world: run_ranks(world, all_cases) for world in (1, 2, 3)}


class Oracle:
    """The loss of a whole batch, sample by sample."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.settings = settings_of(case)
        sizes = (8, 5, K)
        self.network = SelfDistilled(plain(), ProjectionHead(DIM, *sizes), "main")
        moved(self.network)
        self.network.double()
        self.center = torch.linspace(-0.2, 0.3, K).double()
        self.views = [floats(each) for each in images().values()]
        self.valid = [n for n in range(BATCH) if LABELS[n] != -1]

    @staticmethod
    def cosines(part: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding of one image, and its cosines with the prototypes."""
        embedding = part.backbone(image[None])[0]
        found = part.head.layers(embedding)
        unit = found / found.norm()
        rows = [row @ unit / row.norm() for row in part.head.prototypes]
        return embedding, torch.stack(rows)

    def temperature(self) -> float:
        if self.settings.warmup_teacher_epochs:
            t = POSITION / IMAGES
            first = self.settings.warmup_teacher_temperature
            return first + (self.settings.teacher_temperature - first) * t
        return self.settings.teacher_temperature

    def taught(self, logits: Tensor) -> Tensor:
        """[G, valid, K]"""
        if self.settings.centring == "mean":
            return ((logits - self.center) / self.temperature()).softmax(-1)
        shares = (logits / self.temperature()).exp().reshape(-1, K)
        for _ in range(3):
            for k in range(K):
                shares[:, k] /= shares[:, k].sum()
            for n in range(len(shares)):
                shares[n] /= shares[n].sum()
        return shares.reshape(logits.shape)

    def run(self) -> dict[str, Any]:
        with torch.no_grad():
            logits = torch.stack(
                [
                    torch.stack([self.cosines(self.network.teacher, v[n])[1] for n in self.valid])
                    for v in self.views[:2]
                ]
            )
            taught = self.taught(logits.clone())
        terms, embeddings = [], [[], []]
        for view, pixels in enumerate(self.views):
            for place, n in enumerate(self.valid):
                embedding, cosines = self.cosines(self.network.student, pixels[n])
                if view < 2:
                    embeddings[view].append(embedding)
                log = (cosines / self.settings.student_temperature).log_softmax(0)
                others = [g for g in range(2) if g != view]
                terms += [-sum(taught[g, place, k] * log[k] for k in range(K)) for g in others]
        pairs = 2 * (len(self.views) - 1)
        assert len(terms) == pairs * len(self.valid)
        cross = sum(terms) / len(terms)
        value = cross
        entropy = -(taught * taught.log()).sum(-1).mean()
        mean = taught.mean((0, 1))
        metrics = {
            "loss_dino": float(cross.detach()),
            "teacher_entropy": float(entropy),
            "teacher_mean_entropy": float(-(mean * mean.log()).sum()),
            "teacher_student_kl": float(cross.detach() - entropy),
        }
        if self.settings.koleo_weight:
            spread = []
            for own in embeddings:
                unit = [each / each.norm() for each in own]
                for i, each in enumerate(unit):
                    apart = [(each - unit[j]).norm() for j in range(len(unit)) if j != i]
                    spread.append(-min(apart, key=lambda distance: float(distance.detach())).log())
            koleo = sum(spread) / len(spread)
            metrics["loss_koleo"] = float(koleo.detach())
            value = value + self.settings.koleo_weight * koleo
        value = value * self.settings.weight
        value.backward()
        center = 0.9 * self.center + 0.1 * logits.mean((0, 1))
        grads = {n: p.grad for n, p in self.network.student.named_parameters()}
        if self.settings.freeze_prototypes_epochs:
            grads["head.prototypes"] = torch.zeros_like(grads["head.prototypes"])
        return {
            "value": float(value.detach()),
            "grads": grads,
            "center": center,
            "metrics": metrics,
        }


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_step_is_that_of_loops_over_views_samples_and_prototypes(results, case: int) -> None:
    expected = Oracle(CASES[case]).run()
    for world, ranks in results.items():
        for rank in ranks:
            found = rank[case]
            assert found["value"] == pytest.approx(expected["value"], rel=1e-5)
            assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
            np.testing.assert_allclose(found["center"], expected["center"], atol=1e-6)
        for name, gradient in expected["grads"].items():
            # The engine averages over the ranks.
            mean = np.mean([rank[case]["grads"][name] for rank in ranks], axis=0)
            largest = max(float(gradient.abs().max()), 1e-6)
            np.testing.assert_allclose(
                mean, gradient, atol=2e-4 * largest, err_msg=f"{world} {name}"
            )


@pytest.mark.parametrize("case", range(len(COLLECTIVES)))
def test_a_step_takes_few_collectives(results, case: int) -> None:
    for rank in results[3]:
        assert rank[case]["collectives"] == COLLECTIVES[case]


def test_prototypes_that_are_fixed_have_a_gradient_of_zero(results) -> None:
    for ranks in results.values():
        assert all(not rank[3]["grads"]["head.prototypes"].any() for rank in ranks)


def test_momentum_and_temperature_follow_the_position() -> None:
    settings = settings_of({"warmup_teacher_epochs": 0.5, "teacher_temperature": 0.07})
    config = Config(
        model=MobileFaceNet(embedding_dim=DIM),
        data=Data(path="faces", image_px=PX),
        objective=settings,
        train=Train(batch_size=10, epochs=2),
    )
    setting = Setting(config, 5, (0,), CPU, None, None, 100)  # type: ignore[arg-type]
    objective = settings.build(setting=setting)
    for position, share in ((0, 0.0), (50, 0.25), (100, 0.5), (200, 1.0)):
        expected = 1 - 0.004 * (math.cos(math.pi * share) + 1) / 2
        assert objective.momentum(position) == pytest.approx(expected, abs=1e-12)
    temperatures = [objective.teacher_temperature(each) for each in (0, 25, 50, 150)]
    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])
