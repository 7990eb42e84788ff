"""A step in micro-batches against the same step with all graphs alive at once, in plain torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from manyfaces.cluster.world import World
from manyfaces.configs import rng
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.objectives.distill import Distill
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.schema import Config, Data, Head, Objective, Train
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.train.build import dry_runs
from manyfaces.train.engine import Engine
from manyfaces.train.gradient_cache import GradientCache
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Setting
from manyfaces.train.objectives.objective import Objective as Optimised
from manyfaces.train.step import StepResult, train_step

N, F, D, CLASSES, STEPS, SEED, LR = 13, 6, 8, 40, 2, 4, 0.5
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A group of this process alone, and one thread, which such small tensors need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


class Network(nn.Module):
    """Two branches behind a norm and something random."""

    def __init__(self, norm: str = "layer", dropout: float = 0.0, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(1)
        norms = {"layer": nn.LayerNorm(width), "batch": nn.BatchNorm1d(width)}
        self.trunk = nn.Sequential(
            nn.Linear(F, width), norms[norm], nn.PReLU(width), nn.Dropout(dropout)
        )
        self.main, self.second = nn.Linear(width, D), nn.Linear(width, D)

    def forward(self, images_NF: Tensor) -> Output:
        features = self.trunk(images_NF)
        return Output({"main": self.main(features), "second": self.second(features)})


class PlainEngine:
    """`Engine` by torch alone."""

    device = CPU
    copy_buffers, put_back = Engine.copy_buffers, Engine.put_back

    def __init__(self, network: nn.Module) -> None:
        self.module = network
        self.parameters = dict(network.named_parameters())
        self.calls: list[bool] = []
        """Of each backward pass whether it was the last."""
        self.shown: list[int] = []
        """How many images each forward pass was shown."""

    def run(self, images: Tensor) -> Output:
        self.shown.append(len(images))
        return as_output(self.module(images))

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        self.calls.append(is_last)
        loss.backward()

    def step(self, lr: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), 5.0)
        with torch.no_grad():
            for weight in self.parameters.values():
                if weight.grad is not None:
                    weight -= lr * weight.grad
                    weight.grad = None
        return float(norm)


def teacher(path: str) -> Encoder:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, D))
    model = MobileFaceNet(embedding_dim=D)
    return Encoder(network, model, (4, 4), CPU, autocast=False)


def built(objective: Objective) -> Optimised:
    config = Config(
        model=MobileFaceNet(embedding_dim=D),
        data=Data(path="faces", order=PK(images_per_identity=2)),
        train=Train(batch_size=12),
        head=Head(scale=16.0, sample_rate=0.5),
        objective=objective,
    )
    setting = Setting(config, CLASSES, (0,), CPU, None, teacher)
    made = objective.build(setting=setting)
    assert isinstance(made, Optimised)
    return made


def batch_at(step: int, num: int = N) -> Batch:
    random = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES // 4, (num,), generator=random)
    labels[3] = -1
    return Batch(0, np.arange(num), {"main": torch.randn(num, F, generator=random)}, labels)


def moment_at(step: int, num: int = N) -> Moment:
    return Moment(position=step * num, batch_size=num, lr=LR)


def alive_at_once(
    network: nn.Module, objective: Optimised, step: int, parts: int, *, draws: bool
) -> StepResult:
    """One step by plain autograd: the graphs of all parts are kept, and the loss goes back through
    all of them."""
    batch, moment, engine = batch_at(step), moment_at(step), PlainEngine(network)

    def run(images: Tensor) -> Output:
        outputs = []
        for i in range(parts):
            if draws:
                key = rng.key(SEED, rng.Stream.NETWORK_STEP, moment.position, 0, i)
                torch.manual_seed(key >> 1)
            outputs.append(network(images[slice(*batch_share(N, i, parts))]))
        names = outputs[0].embeddings
        return Output({name: torch.cat([o.embeddings[name] for o in outputs]) for name in names})

    loss = objective.loss(Forward(run, batch.images), batch, moment)
    loss.surrogate.backward()
    return StepResult(loss.value, engine.step(moment.lr), bool(loss.last), loss.metrics)


def state(network: nn.Module, objective: Optimised) -> dict[str, Tensor]:
    kept = {f"{n}.{k}": t for n, p in objective.state().items() for k, t in p.tensors.items()}
    return {**network.state_dict(), **kept}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Up to the rounding of a few steps."""
    for name, tensor in expected.items():
        assert (found[name] - tensor).double().norm() <= 1e-5 * tensor.double().norm(), name


OBJECTIVES: list[Objective] = [
    MarginSoftmax(),
    Triplet(margin=0.4),
    Sum(of=(MarginSoftmax(), Triplet(margin=0.4, weight=0.5, branch="second"))),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.word())
@pytest.mark.parametrize("num_micro_batches", [4, 13])
def test_the_step_is_that_of_one_large_batch(objective: Objective, num_micro_batches: int) -> None:
    network, whole = Network(), Network()
    ours, theirs = built(objective), built(objective)
    engine: Any = PlainEngine(network)
    for step in range(STEPS):
        done = train_step(
            engine, ours, batch_at(step), moment_at(step),
            seed=SEED, rank=0, num_micro_batches=num_micro_batches,
        )  # fmt: skip
        expected = alive_at_once(whole, theirs, step, 1, draws=False)
        assert float(done.loss) == pytest.approx(float(expected.loss), rel=1e-6)
        assert done.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert done.metrics.keys() == expected.metrics.keys()
    assert engine.calls == ([False] * (num_micro_batches - 1) + [True]) * STEPS
    assert max(engine.shown) == -(-N // num_micro_batches)
    assert_same(state(network, ours), state(whole, theirs))


@pytest.mark.parametrize(("norm", "dropout"), [("batch", 0.0), ("layer", 0.5), ("batch", 0.2)])
def test_statistics_move_once_and_random_numbers_are_drawn_once(norm: str, dropout: float) -> None:
    network, whole = Network(norm, dropout), Network(norm, dropout)
    ours, theirs = built(MarginSoftmax()), built(MarginSoftmax())
    engine: Any = PlainEngine(network)
    for step in range(STEPS):
        done = train_step(
            engine, ours, batch_at(step), moment_at(step), seed=SEED, rank=0, num_micro_batches=3
        )
        expected = alive_at_once(whole, theirs, step, 3, draws=True)
        assert float(done.loss) == pytest.approx(float(expected.loss), rel=1e-6)
    found = state(network, ours)
    assert norm == "layer" or int(found["trunk.1.num_batches_tracked"]) == 3 * STEPS
    assert_same(found, state(whole, theirs))


def test_a_teacher_sees_no_more_images_at_a_time() -> None:
    objective, seen = built(Distill(teacher="teacher")), []
    embed = objective.teacher.backbone.forward  # type: ignore[attr-defined]

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return embed(images)  # type: ignore[no-any-return]

    objective.teacher.backbone.forward = counted  # type: ignore[attr-defined]
    images_NHWC = torch.randint(0, 255, (N, 4, 4, 3), dtype=torch.uint8)
    batch = Batch(0, np.arange(N), {"main": images_NHWC}, torch.arange(N))

    def network_of() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, D))

    class Pixels(PlainEngine):
        def run(self, images: Tensor) -> Output:
            return super().run(images.float() / 255)

    losses, weights = [], []
    for count in (1, 4):
        engine: Any = Pixels(network_of())
        done = train_step(
            engine, objective, batch, moment_at(0), seed=0, rank=0, num_micro_batches=count
        )
        losses.append(float(done.loss))
        weights.append(engine.parameters["1.weight"].detach())
    assert seen == [13, 3, 3, 3, 4]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert_same({"weight": weights[1]}, {"weight": weights[0]})


class TwoViews(Optimised):
    """One view follows another, which has no gradient of its own."""

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        target = forward.embeddings("second", "other").detach()
        value = (forward.embeddings("main") - target).square().mean()
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))


def test_views_without_a_gradient_move_statistics_too() -> None:
    network, whole = Network("batch"), Network("batch")
    batch = batch_at(0)
    images = {"main": batch.images["main"], "other": batch.images["main"].flip(1)}
    batch = Batch(0, batch.ids_N, images, batch.labels_N)
    engine: Any = PlainEngine(network)
    train_step(engine, TwoViews(), batch, moment_at(0), seed=0, rank=0, num_micro_batches=2)
    assert engine.calls == [False, True]
    outputs = {
        name: [whole(images[name][slice(*batch_share(N, i, 2))]) for i in range(2)]
        for name in ("other", "main")
    }
    target = torch.cat([o.embeddings["second"] for o in outputs["other"]]).detach()
    (torch.cat([o.embeddings["main"] for o in outputs["main"]]) - target).square().mean().backward()
    PlainEngine(whole).step(LR)
    assert_same(network.state_dict(), whole.state_dict())


@contextmanager
def kept_for_backward() -> Iterator[Callable[[], int]]:
    """Gives the most bytes that autograd has kept at a time."""
    now, most = 0, 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            now += tensor.nbytes
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield lambda: most


def test_memory_is_that_of_a_micro_batch() -> None:
    def most(num: int, count: int) -> int:
        engine: Any = PlainEngine(Network(width=2048))
        with kept_for_backward() as bytes_kept:
            train_step(
                engine, built(Triplet()), batch_at(0, num), moment_at(0, num),
                seed=0, rank=0, num_micro_batches=count,
            )  # fmt: skip
        return bytes_kept()

    small, large = most(16, 2), most(64, 8)
    assert large < 1.2 * small
    assert most(64, 1) > 3 * large  # weights are among what is kept


class Decayed(Optimised):
    """Reads a weight itself."""

    def __init__(self, network: Network) -> None:
        self.weight = network.main.weight

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        value = forward.embeddings("main").square().mean() + self.weight.square().sum()
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))


class Unrelated(Optimised):
    """Has no gradient for the network, and one for a weight of its own where there is one."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        value = forward.embeddings("main").detach().square().mean() * self.weight
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))


class Shifting(Network):
    """Returns something else each time."""

    def forward(self, images_NF: Tensor) -> Output:
        self.times = getattr(self, "times", 0) + 1
        return super().forward(images_NF + self.times)


def test_what_does_not_go_with_it_is_told_in_a_line() -> None:
    network = Network()
    engine: Any = PlainEngine(network)
    step: dict[str, Any] = {"seed": 0, "rank": 0, "num_micro_batches": 2}
    with pytest.raises(UserError, match=r"reads the network's weight main\.weight itself.*null"):
        train_step(engine, Decayed(network), batch_at(0), moment_at(0), **step)
    engine = PlainEngine(Shifting())
    with pytest.raises(UserError, match=r"other embeddings .*micro_batch_size, .* null"):
        train_step(engine, built(MarginSoftmax()), batch_at(0), moment_at(0), **step)
    for weight in (torch.ones(()), torch.ones((), requires_grad=True)):
        engine = PlainEngine(Network())
        with pytest.raises(UserError, match="does not depend on what the network returns"):
            train_step(engine, Unrelated(weight), batch_at(0), moment_at(0), **step)


def test_a_rank_tells_what_another_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would wait for the other in its next collective."""
    engine: Any = PlainEngine(Network())
    cache = GradientCache(engine, engine.run, torch.manual_seed, 2)
    cache.backward(cache.run(batch_at(0).images["main"]).embeddings["main"].sum())
    cache.check()
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(1))  # of the other
    with pytest.raises(UserError, match="other embeddings"):
        cache.check()


def test_a_dry_run_is_made_of_the_smallest_and_of_the_largest_micro_batch() -> None:
    def sizes(batch_size: int, micro: int | None, rank: int, world: int) -> list[int]:
        train = Train(batch_size=batch_size, micro_batch_size=micro)
        config = Config(model=MobileFaceNet(), data=Data(path="faces"), train=train)
        shown: list[int] = []

        def run(images_NHWC: Tensor) -> Output:
            shown.append(len(images_NHWC))
            return Output({"main": torch.zeros(1)})

        for dry_run in dry_runs(config, World(rank, world, CPU), built(Triplet()), run):
            dry_run()
        return shown

    assert sizes(13, None, 0, 1) == [13]
    assert sizes(13, 4, 0, 1) == [3, 4]
    # As many on both ranks, as each may be collective.
    assert sizes(9, 2, 0, 2) == sizes(9, 2, 1, 2) == [1, 2]
    assert sizes(10, 3, 0, 3) == [1, 2]
    assert sizes(8, 2, 1, 2) == [2, 2]


def test_all_workers_have_as_many_micro_batches() -> None:
    def parts(batch_size: int, micro: int | None, world: int) -> tuple[int, int]:
        train = Train(batch_size=batch_size, micro_batch_size=micro)
        return train.num_micro_batches(world), train.images_at_a_time(world)

    assert parts(24_576, None, 64) == (1, 384)
    assert parts(24_576, 384, 64) == (1, 384)
    assert parts(24_576, 500, 64) == (1, 384)
    assert parts(24_576, 100, 64) == (4, 96)
    assert parts(9, 2, 2) == (3, 2)  # shares of 4 and 5
    assert parts(9, 1, 2) == (4, 2)  # the smaller share has no fifth image
    assert parts(3, 1, 3) == (1, 1)
