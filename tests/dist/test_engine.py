"""DeepSpeed at real gloo ranks: exact gradients with uneven shares, bit-exact state at stages 0 to
2, nothing taken when not finite."""

import numpy as np
import pytest
import torch
from launcher import run_ranks
from torch import nn

from manyfaces.cluster.world import World
from manyfaces.configs import schema
from manyfaces.models.backbones.backbone import build, checkpoint_activations

PX, DIM, BATCH = 16, 8, 7
CPU = torch.device("cpu")


def plain_backbone() -> nn.Module:
    """Without BatchNorm, whose statistics are each rank's own."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.PReLU(4), nn.Flatten(), nn.Linear(4 * 7 * 7, DIM))


def inputs(step: int, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share of a global batch, and of the gradient of a global mean loss."""
    g = torch.Generator().manual_seed(step)
    images = torch.randint(0, 255, (BATCH, PX, PX, 3), dtype=torch.uint8, generator=g)
    gradient = torch.randn(BATCH, DIM, generator=g) * 0.1
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return images[share], gradient[share]


def make_engine(stage: int, kind: str, world: int, backbone: nn.Module | None = None, precision: str = "float32"):
    from manyfaces.train.engine import Engine

    train = schema.Train(batch_size=BATCH, optimizer={"kind": kind}, precision=precision)
    engine = Engine(backbone or plain_backbone(), train, schema.Engine(zero_stage=stage), CPU, world)
    engine.warm_up(inputs(99, World.current().rank, world)[0])
    return engine


def run_steps(engine, world: World, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        images, gradient = inputs(step, world.rank, world.size)
        embeddings = engine.embed(images)
        engine.backward(embeddings, gradient * world.size)
        norms.append(engine.step(0.05))
    return norms


def state_of(engine) -> dict[str, np.ndarray]:
    return {k: v.float().numpy().copy() for k, v in (engine.weights() | engine.read_moments()).items()}


def all_cases() -> dict[str, object]:
    world = World.current()
    results: dict[str, object] = {}
    for stage in (0, 1, 2):
        for kind in ("sgd", "adamw"):
            engine = make_engine(stage, kind, world.size)
            engine.load_moments(None)
            norms = run_steps(engine, world, 0, 3)
            weights = {k: v.clone() for k, v in engine.weights().items()}
            moments = {k: v.clone() for k, v in engine.read_moments().items()}
            norms += run_steps(engine, world, 3, 5)
            whole = state_of(engine)
            resumed_from = plain_backbone()
            resumed_from.load_state_dict(weights)
            resumed = make_engine(stage, kind, world.size, resumed_from)
            resumed.load_moments(moments)
            assert run_steps(resumed, world, 3, 5) == norms[3:]
            again = state_of(resumed)
            assert all(np.array_equal(whole[k], again[k]) for k in whole), (stage, kind)
            results[f"{stage} {kind}"] = (whole, norms)
        results[f"{stage} not finite"] = not_finite(stage, world)
    return results


def not_finite(stage: int, world: World) -> bool:
    """A NaN on one rank alone stops all of them, and the weights stay."""
    from manyfaces.train.engine import NotFiniteError

    engine = make_engine(stage, "sgd", world.size)
    engine.load_moments(None)
    before = {k: v.clone() for k, v in engine.weights().items()}
    images, gradient = inputs(0, world.rank, world.size)
    embeddings = engine.embed(images)
    engine.backward(embeddings, gradient * (float("nan") if world.rank == world.size - 1 else 1.0))
    with pytest.raises(NotFiniteError):
        engine.step(0.05)
    return all(torch.equal(before[k], v) for k, v in engine.weights().items())


@pytest.fixture(scope="module")
def results() -> dict[int, list[dict]]:
    return {world: run_ranks(world, all_cases, timeout_s=200) for world in (1, 2, 3)}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_agree_with_plain_torch_at_any_world_size(results, kind: str, stage: int) -> None:
    """Oracle: one process, torch's optimiser, the whole batch, the gradient of the mean; clipped
    alike."""
    model = plain_backbone()
    options = schema.Train(optimizer={"kind": kind}).optimizer.model_dump(exclude={"kind"}) | {"lr": 0.05}
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](model.parameters(), **options)
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
                assert np.allclose(state[name], value.numpy(), atol=2e-5 if kind == "sgd" else 2e-3), (world, name)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_gradient_that_is_not_finite_is_not_taken(results, stage: int) -> None:
    assert all(rank[f"{stage} not finite"] for world in results.values() for rank in world)


@pytest.mark.parametrize(
    "model",
    [
        schema.IResNetModel(kind="iresnet", depth=18),
        schema.MobileFaceNetModel(kind="mobilefacenet", scale=1),
        schema.ViTModel(kind="vit", size="tiny"),
    ],
)
def test_activation_checkpointing_changes_nothing(model) -> None:
    outcomes = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        backbone = build(model, 48).train()
        if wrapped:
            checkpoint_activations(backbone)
        images = torch.randn(4, 3, 48, 48)
        torch.manual_seed(5)
        backbone(images).square().sum().backward()
        outcomes.append([p.grad for p in backbone.parameters() if p.grad is not None] + list(backbone.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
