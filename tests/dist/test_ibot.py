"""iBOT on any number of ranks: loss and gradient of images and hidden patches beside loops in
float64, and the collectives of a step."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from token_network import Tokens
from torch import Tensor, nn

from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.configs.multi_crop import MultiCrop
from manyfaces.configs.objectives.ibot import IBOT
from manyfaces.configs.schema import Config, Data, Train
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.self_distilled import ProjectionHead, SelfDistilled
from manyfaces.train.objectives.objective import Forward, Moment, Setting
from manyfaces.train.objectives.token_masks import block_masks

BATCH, PX, DIM, K, SEED = 5, 32, 6, 10, 4
POSITION, IMAGES, CPU = 20, 70, torch.device("cpu")
LABELS = torch.tensor([0, 0, -1, 2, 3])
NAMES = ("global_0", "global_1", "local_0")
SETTINGS = IBOT(
    crops=MultiCrop(local_crops=1),
    prototypes=K,
    hidden_dim=8,
    bottleneck_dim=5,
    freeze_prototypes_epochs=0,
    patch_weight=0.7,
    mask_probability=0.8,
    mask_ratio=(0.2, 0.6),
    weight=2,
)
SHARP = SETTINGS.model_copy(update={"centring": "sinkhorn"})


def moved(network: SelfDistilled) -> SelfDistilled:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    return network


def images() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(3)
    shape = (BATCH, PX, PX, 3)
    return {n: torch.randint(0, 256, shape, generator=make).to(torch.uint8) for n in NAMES}


def floats(images_NHWC: Tensor) -> Tensor:
    return (images_NHWC.permute(0, 3, 1, 2).double() - 127.5) / 127.5


def one(settings: IBOT) -> dict[str, Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    config = Config(
        model=CustomBackbone(file="not_needed.py", name="Tokens", embedding_dim=DIM),
        data=Data(path="faces", image_px=PX),
        objective=settings,
        train=Train(batch_size=BATCH, epochs=2),
        run={"seed": SEED},
    )
    setting = Setting(config, 5, (0,), CPU, dist.group.WORLD, None, IMAGES)  # type: ignore[arg-type]
    objective = settings.build(setting=setting)
    network = moved(objective.network(Tokens(DIM)))
    objective.patch_center_K.copy_(torch.linspace(-0.2, 0.3, K))
    first, after = batch_share(BATCH, rank, world)
    own = {name: each[first:after] for name, each in images().items()}
    counts, reduce = [0], dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        counts[0] += 1
        return reduce(*arguments, **named)

    dist.all_reduce = counted
    forward = Forward(lambda each: network(floats(each).float()), own)
    batch = Batch(POSITION, np.arange(first, after), own, LABELS[first:after])
    told = objective.loss(forward, batch, Moment(POSITION, BATCH, 0.1))
    dist.all_reduce = reduce
    told.surrogate.backward()
    grads = {n: p.grad.clone() for n, p in network.student.named_parameters()}
    objective.dry_run(forward).backward()
    return {
        "value": float(told.value),
        "grads": {name: gradient.numpy() for name, gradient in grads.items()},
        "center": objective.state()["ibot"].tensors["center"].numpy(),
        "metrics": {name: float(value) for name, value in told.metrics.items()},
        "collectives": counts[0],
    }


def both() -> list[dict[str, Any]]:
    return [one(SETTINGS), one(SHARP)]


@pytest.fixture(scope="module")
def results() -> dict[int, list[list[dict[str, Any]]]]:
    return {world: run_ranks(world, both) for world in (1, 2, 3)}


def cosines(head: nn.Module, row: Tensor) -> Tensor:
    found = head.layers(row)
    return torch.stack([p @ found / found.norm() / p.norm() for p in head.prototypes])


def cross(taught: Tensor, student: Tensor) -> Tensor:
    log = (student / 0.1).log_softmax(0)
    return -sum(taught[k] * log[k] for k in range(K))


def test_a_step_is_that_of_loops(results) -> None:
    heads = ProjectionHead(DIM, 8, 5, K), ProjectionHead(Tokens.WIDTH, 8, 5, K)
    network = moved(SelfDistilled(Tokens(DIM), heads[0], "main", heads[1])).double()
    positions = np.arange(POSITION, POSITION + BATCH)
    masks = [
        torch.from_numpy(block_masks(SEED, positions, view, (4, 4), 0.8, (0.2, 0.6)))
        for view in range(2)
    ]
    center = torch.linspace(-0.2, 0.3, K).double()
    views = [floats(each) for each in images().values()]
    valid = [n for n in range(BATCH) if LABELS[n] != -1]
    of_images, of_patches, patch_outputs, hidden = [], [], [], 0
    for n in valid:
        seen, tokens = [], []
        for view, pixels in enumerate(views):
            mask = masks[view][n][None] if view < 2 else None
            output = network.student.backbone(pixels[n : n + 1], mask)
            seen.append(cosines(network.student.head, output.embeddings["main"][0]))
            tokens.append(output.tokens_NTD[0])
        for g in range(2):
            with torch.no_grad():
                whole = network.teacher.backbone(views[g][n : n + 1])
                logits = cosines(network.teacher.head, whole.embeddings["main"][0])
                taught = (logits / 0.04).softmax(0)
            of_images += [cross(taught, seen[view]) for view in range(3) if view != g]
            own = []
            for t in range(16):
                if not masks[g][n, t]:
                    continue
                with torch.no_grad():
                    logits = cosines(network.teacher.patch_head, whole.tokens_NTD[0, t])
                    patch_outputs.append(logits)
                    taught = ((logits - center) / 0.04).softmax(0)
                own.append(cross(taught, cosines(network.student.patch_head, tokens[g][t])))
            hidden += len(own)
            of_patches.append(sum(own) / len(own) if own else torch.zeros(()).double())
    patches = sum(of_patches) / len(of_patches)
    value = 2 * (sum(of_images) / len(of_images) + 0.7 * patches)
    value.backward()
    assert hidden > 10
    expected_center = 0.9 * center + 0.1 * torch.stack(patch_outputs).mean(0)
    for world, ranks in results.items():
        for found in (rank[0] for rank in ranks):
            assert found["value"] == pytest.approx(float(value.detach()), rel=1e-5)
            assert found["metrics"]["loss_patches"] == pytest.approx(
                float(patches.detach()), rel=1e-4
            )
            share = hidden / (len(valid) * 2 * 16)
            assert found["metrics"]["hidden_share"] == pytest.approx(share, abs=1e-9)
            np.testing.assert_allclose(found["center"], expected_center, atol=1e-6)
        for name, parameter in network.student.named_parameters():
            gradient = parameter.grad
            mean = np.mean([rank[0]["grads"][name] for rank in ranks], axis=0)
            largest = max(float(gradient.abs().max()), 1e-6)
            np.testing.assert_allclose(
                mean, gradient, atol=2e-4 * largest, err_msg=f"{world} {name}"
            )


def test_a_balanced_loss_is_the_same_on_any_number_of_ranks(results) -> None:
    values = [rank[1]["value"] for ranks in results.values() for rank in ranks]
    assert values == pytest.approx([values[0]] * 6, rel=1e-6)
    assert values[0] != pytest.approx(results[1][0][0]["value"], rel=1e-2)


def test_a_step_takes_few_collectives(results) -> None:
    for rank in results[3]:
        assert [case["collectives"] for case in rank] == [2, 8]
