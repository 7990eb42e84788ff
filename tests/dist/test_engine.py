"""DeepSpeed at real gloo ranks: exact gradients with uneven shares, bit-exact state at stages 0 to
3 with one and with several parameter groups, nothing taken when not finite."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from launcher import run_ranks
from torch import nn

from manyfaces.cluster.world import World
from manyfaces.configs import schema
from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import ViT
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.activation_checkpoint import checkpoint_activations
from manyfaces.models.backbones.pixels import to_input
from manyfaces.train.parameter_groups import groups_of

PX, DIM, BATCH = 16, 8, 7
CPU = torch.device("cpu")
MODEL = CustomBackbone(file="not_needed.py", name="Plain", embedding_dim=DIM)
GROUPED = {
    "decay_norms_and_biases": False,
    "groups": [
        {"match": "0.*", "lr_scale": 0.25},
        {"match": "*.weight", "weight_decay": 0.2},
    ],
}
"""Settings that part the weights of `plain_backbone` into three groups and leave one out."""


def plain_backbone() -> nn.Module:
    """Without BatchNorm, whose statistics are each rank's own."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.PReLU(4), nn.Flatten(), nn.Linear(4 * 7 * 7, DIM)
    )


def inputs(step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of a global batch, and of the gradient of a global mean loss."""
    g = torch.Generator().manual_seed(step)
    images = torch.randint(0, 255, (BATCH, PX, PX, 3), dtype=torch.uint8, generator=g)
    gradient = torch.randn(BATCH, DIM, generator=g) * 0.1
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return images[share], gradient[share]


def make_engine(
    stage: int,
    optimizer: dict[str, Any],
    world: int,
    backbone: nn.Module | None = None,
    precision: str = "float32",
):
    from manyfaces.train.engine import Engine

    class Partitioned(Engine):
        """DeepSpeed would leave so small weights whole at stage 3."""

        def _deepspeed_config(self, *settings: Any) -> dict[str, Any]:
            config = super()._deepspeed_config(*settings)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return config

    train = schema.Train(batch_size=BATCH, optimizer=optimizer, precision=precision)
    backbone = backbone or plain_backbone()
    groups = groups_of(backbone, train.optimizer)
    engine = Partitioned(
        backbone, groups, MODEL, train, schema.Engine(zero_stage=stage), CPU, world
    )
    images = inputs(99, World.current().rank, world)[0]
    engine.warm_up(lambda: (engine.run(images).embeddings["main"] * 1e-6).sum())
    return engine


def run_steps(engine, world: World, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        images, gradient = inputs(step, world.rank, world.size)
        embeddings = engine.run(images).embeddings["main"]
        engine.backward((embeddings * (gradient * world.size)).sum())
        norms.append(engine.step(0.05))
    return norms


def weights_of(engine) -> dict[str, torch.Tensor]:
    """What rank 0 reads, on every rank."""
    weights = [engine.weights()]
    dist.broadcast_object_list(weights, 0)
    return weights[0]


def moments_of(engine) -> dict[str, torch.Tensor]:
    """What rank 0 reads, on every rank; the others hold one gathered tensor at a time."""
    from manyfaces.train import engine as module

    gathered: list[weakref.ref[torch.Tensor]] = []
    gather = module.safe_get_full_optimizer_state

    def counted(*given: object) -> torch.Tensor:
        assert sum(held() is not None for held in gathered) <= 1
        tensor = gather(*given)
        gathered.append(weakref.ref(tensor))
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() > 0:
            patch.setattr(module, "safe_get_full_optimizer_state", counted)
        read = engine.read_moments()
    assert bool(read) == (dist.get_rank() == 0)
    sent = [read]
    dist.broadcast_object_list(sent)
    return sent[0]


def state_of(engine) -> dict[str, np.ndarray]:
    state = weights_of(engine) | moments_of(engine)
    return {k: v.float().numpy().copy() for k, v in state.items()}


def all_cases() -> dict[str, object]:
    world = World.current()
    results: dict[str, object] = {}
    for stage in (0, 1, 2, 3):
        for kind in ("sgd", "adamw"):
            engine = make_engine(stage, {"kind": kind}, world.size)
            engine.load_moments(None)
            norms = run_steps(engine, world, 0, 3)
            weights = {k: v.clone() for k, v in weights_of(engine).items()}
            moments = {k: v.clone() for k, v in moments_of(engine).items()}
            evaluated_alone(engine, world)
            norms += run_steps(engine, world, 3, 5)
            whole = state_of(engine)
            resumed_from = plain_backbone()
            resumed_from.load_state_dict(weights)
            resumed = make_engine(stage, {"kind": kind}, world.size, resumed_from)
            resumed.load_moments(moments)
            assert run_steps(resumed, world, 3, 5) == norms[3:]
            again = state_of(resumed)
            assert all(np.array_equal(whole[k], again[k]) for k in whole), (stage, kind)
            results[f"{stage} {kind}"] = (whole, norms)
        results[f"{stage} not finite"] = not_finite(stage, world)
    return results


def evaluated_alone(engine, world: World) -> None:
    """Each rank runs the network another number of times, and it trains on as before."""
    images_NCHW = torch.randn(2, 3, PX, PX)
    plain = plain_backbone()
    plain.load_state_dict(weights_of(engine))
    with engine.whole() as network, torch.no_grad():
        for _ in range(world.rank + 1):
            assert torch.equal(network(images_NCHW), plain(images_NCHW))


def not_finite(stage: int, world: World) -> bool:
    """A NaN on one rank alone stops all of them, and the weights stay."""
    from manyfaces.train.engine import NotFiniteError

    engine = make_engine(stage, {"kind": "sgd"}, world.size)
    engine.load_moments(None)
    before = {k: v.clone() for k, v in weights_of(engine).items()}
    images, gradient = inputs(0, world.rank, world.size)
    embeddings = engine.run(images).embeddings["main"]
    factor = float("nan") if world.rank == world.size - 1 else 1.0
    engine.backward((embeddings * (gradient * factor)).sum())
    with pytest.raises(NotFiniteError):
        engine.step(0.05)
    return all(torch.equal(before[k], v) for k, v in weights_of(engine).items())


def other_networks(world: World) -> None:
    """One of our networks, one of another width than was said, and one whose number of weights is
    odd."""
    from manyfaces.train.engine import Engine

    def wrapped(network: nn.Module, model: schema.Backbone) -> Engine:
        train, settings = schema.Train(batch_size=BATCH), schema.Engine(zero_stage=1)
        groups = groups_of(network, train.optimizer)
        return Engine(network, groups, model, train, settings, CPU, world.size)

    model = MobileFaceNet(scale=1, embedding_dim=DIM, pixel_mean=(100, 110, 120))
    network = model.build(image_hw=(PX, 2 * PX))
    engine = wrapped(network, model)
    images_NHWC = torch.randint(0, 256, (3, PX, 2 * PX, 3), dtype=torch.uint8)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    engine.warm_up(lambda: engine.run(images_NHWC).embeddings["main"].sum())
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
    network.eval()
    images_NCHW = to_input(images_NHWC, model, torch.channels_last)
    expected = network(images_NCHW).embeddings["main"]
    assert torch.equal(engine.run(images_NHWC).embeddings["main"], expected)

    other = wrapped(plain_backbone(), MODEL.model_copy(update={"embedding_dim": 9}))
    with pytest.raises(UserError, match=r"\[3, 8\] for 3 images; model.embedding_dim is 9"):
        other.run(images_NHWC[:, :, :PX])
    wrapped(nn.Sequential(nn.Flatten(), nn.Linear(3 * PX * PX, 1)), MODEL)


def shown_one_gpu() -> None:
    """A worker that is not the first of its machine, and is shown one GPU, which is its first."""
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "3")
        patch.setattr(get_accelerator(), "set_device", asked.append)
        make_engine(1, {"kind": "sgd"}, 1)
    assert set(asked) == {0}


def both_cases() -> tuple[dict[str, object], dict[str, Any]]:
    """With one group and with several, in the same processes: starting them takes longest."""
    world = World.current()
    several = grouped_cases() if world.size < 3 else {}
    if world.size == 1:
        other_networks(world)
        shown_one_gpu()
    return all_cases(), several


@pytest.fixture(scope="module")
def both() -> dict[int, list[tuple[dict, dict]]]:
    return {world: run_ranks(world, both_cases, timeout_s=300) for world in (1, 2, 3)}


@pytest.fixture(scope="module")
def results(both) -> dict[int, list[dict]]:
    return {world: [one for one, _ in ranks] for world, ranks in both.items()}


@pytest.fixture(scope="module")
def grouped(both) -> dict[int, list[dict[str, Any]]]:
    return {world: [several for _, several in both[world]] for world in (1, 2)}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_agree_with_plain_torch_at_any_world_size(results, kind: str, stage: int) -> None:
    """Oracle: one process, torch's optimiser, the whole batch, the gradient of the mean; clipped
    alike."""
    model = plain_backbone()
    options = schema.Train(optimizer={"kind": kind}).optimizer.arguments() | {"lr": 0.05}
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](
        model.parameters(), **options
    )
    norms = []
    for step in range(5):
        images, gradient = inputs(step, 0, 1)
        optimizer.zero_grad()
        (model((images.permute(0, 3, 1, 2).float() - 127.5) / 127.5) * gradient).sum().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 5.0).item())
        optimizer.step()
    for world in (1, 2, 3):
        for rank in results[world]:
            state, their_norms = rank[f"{stage} {kind}"]
            assert np.allclose(their_norms, norms, rtol=1e-4)
            for name, value in model.state_dict().items():
                assert np.allclose(
                    state[name], value.numpy(), atol=2e-5 if kind == "sgd" else 2e-3
                ), (world, name)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_not_taken(results, stage: int) -> None:
    assert all(rank[f"{stage} not finite"] for world in results.values() for rank in world)


@pytest.mark.parametrize(
    "model",
    [
        IResNet(depth=18),
        MobileFaceNet(scale=1),
        ViT(size="tiny"),
    ],
)
def test_activation_checkpointing_changes_nothing(model) -> None:
    outcomes = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        backbone = model.build(image_hw=(48, 48)).train()
        if wrapped:
            checkpoint_activations(backbone)
        images = torch.randn(4, 3, 48, 48)
        torch.manual_seed(5)
        backbone(images).embeddings["main"].square().sum().backward()
        outcomes.append(
            [p.grad for p in backbone.parameters() if p.grad is not None] + list(backbone.buffers())
        )
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_activation_checkpointing_of_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"names no blocks.*list_blocks"):
        checkpoint_activations(plain_backbone())


def frozen_backbone() -> nn.Module:
    """The plain backbone, of which one weight is not trained."""
    backbone = plain_backbone()
    backbone[3].bias.requires_grad_(False)
    return backbone


def grouped_cases() -> dict[str, Any]:
    """Five steps with several groups at each stage: weights, moments and norms after each of steps
    3 and 5."""
    world = World.current()
    results: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        for kind in ("sgd", "adamw"):
            optimizer = {"kind": kind, **GROUPED}
            engine = make_engine(stage, optimizer, world.size, frozen_backbone())
            assert len(engine.groups) == 3
            engine.load_moments(None)
            norms = run_steps(engine, world, 0, 3)
            at_3 = state_of(engine)
            norms += run_steps(engine, world, 3, 5)
            results[f"{stage} {kind}"] = (at_3, state_of(engine), norms)
    # The oracle runs here, with as many threads as the engine, so that bits can be compared.
    results |= {f"plain {kind}": plain_steps(kind) for kind in ("sgd", "adamw")}
    return results


def resumed_cases(saved: dict[str, Any]) -> dict[str, Any]:
    """From the state after step 3 that another world size and stage saved, to step 5; the state as
    it was restored, and as it is in the end."""
    world = World.current()
    results: dict[str, Any] = {}
    for saved_stage, stage in ((0, 1), (1, 2), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)):
        for kind in ("sgd", "adamw"):
            at_3 = {k: torch.from_numpy(v) for k, v in saved[f"{saved_stage} {kind}"][0].items()}
            backbone = frozen_backbone()
            backbone.load_state_dict({name: at_3[name] for name in backbone.state_dict()})
            engine = make_engine(stage, {"kind": kind, **GROUPED}, world.size, backbone)
            engine.load_moments(at_3)
            restored = state_of(engine)
            run_steps(engine, world, 3, 5)
            results[f"{saved_stage} {stage} {kind}"] = (restored, state_of(engine))
    return results


def plain_steps(kind: str) -> tuple[dict[str, np.ndarray], list[float]]:
    """Oracle: one process, torch's optimiser with its own groups, the whole batch."""
    model = frozen_backbone()
    options = schema.Train(optimizer={"kind": kind}).optimizer.arguments()
    params = [
        {"params": [model[0].weight], "lr": 0.0125},
        {"params": [model[0].bias], "lr": 0.0125, "weight_decay": 0.0},
        {"params": [model[1].weight, model[3].weight], "lr": 0.05, "weight_decay": 0.2},
    ]
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](params, **options)
    norms = []
    for step in range(5):
        images, gradient = inputs(step, 0, 1)
        optimizer.zero_grad()
        (model((images.permute(0, 3, 1, 2).float() - 127.5) / 127.5) * gradient).sum().backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 5.0).item())
        optimizer.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}, norms


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_several_groups_agree_with_plain_torch(grouped, kind: str, stage: int) -> None:
    weights, norms = grouped[1][0][f"plain {kind}"]
    for world, ranks in grouped.items():
        for rank in ranks:
            _, state, their_norms = rank[f"{stage} {kind}"]
            assert np.allclose(their_norms, norms, rtol=1e-4)
            for name, value in weights.items():
                if world == 1:
                    assert np.array_equal(state[name], value), name
                else:
                    limit = 2e-5 if kind == "sgd" else 2e-3
                    assert np.allclose(state[name], value, atol=limit), (world, name)


def test_several_groups_resume_at_another_world_size_and_stage(grouped) -> None:
    for saved_world, world in ((2, 1), (1, 2)):
        saved = grouped[saved_world][0]
        for rank in run_ranks(world, resumed_cases, saved, timeout_s=200):
            for case, (restored, state) in rank.items():
                saved_stage, _, kind = case.split()
                at_3, at_5, _ = saved[f"{saved_stage} {kind}"]
                assert restored.keys() == at_3.keys()
                for name, value in at_3.items():
                    assert np.array_equal(restored[name], value), (case, name)
                for name, value in at_5.items():
                    assert np.allclose(state[name], value, atol=2e-3), (case, name)
