"""ARoFace: which images are warped, and that the loss grows where their warps go."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import run_ranks
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.load import load
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.objectives.aroface import ARoFace
from manyfaces.configs.schema import Config, Data, Head, Train
from manyfaces.configs.split import batch_share
from manyfaces.models.backbones.output import Output
from manyfaces.train.objectives.warp import warped

B, C, D, PX, SEED = 14, 40, 6, 10, 3
CPU = torch.device("cpu")
SCALE, MARGIN = 16.0, 0.2


def weights() -> Tensor:
    return torch.randn(D, PX * PX * 3, generator=torch.Generator().manual_seed(SEED)) / PX


def images() -> Tensor:
    """Smooth pictures, whose warps have gradients that mean something."""
    small = torch.rand(B, 3, 4, 4, generator=torch.Generator().manual_seed(SEED)) * 255
    large = F.interpolate(small, (PX, PX), mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).round().to(torch.uint8)


def labels() -> Tensor:
    labels_B = torch.arange(B) * 2 % C
    labels_B[3] = -1
    return labels_B


def config() -> Config:
    return Config(
        model=MobileFaceNet(embedding_dim=D),
        data=Data(path="faces"),
        train=Train(batch_size=B),
        head=Head(margin=CosFace(m=MARGIN), scale=SCALE),
        objective=ARoFace(share=0.5),
    )


def steps_of_a_rank() -> dict[str, Any]:
    from manyfaces.data.feed.loader import Batch
    from manyfaces.train.objectives.aroface import ARoFace as Made
    from manyfaces.train.objectives.objective import Forward, Moment, Setting

    group = dist.group.WORLD
    assert group is not None
    setting = Setting(config(), C, (0,), CPU, group, lambda path: pytest.fail(path))
    made = config().objective.build(setting=setting)
    assert isinstance(made, Made)
    network = nn.Linear(PX * PX * 3, D, bias=False)
    with torch.no_grad():
        network.weight.copy_(weights())

    def run(images_NHWC: Tensor) -> Output:
        return Output({"main": network((images_NHWC.float() / 127.5 - 1).flatten(1))})

    @contextlib.contextmanager
    def trial(images_NHWC: Tensor) -> Iterator[Output]:
        yield run(images_NHWC)

    lo, hi = batch_share(B, dist.get_rank(), dist.get_world_size())
    batch = Batch(0, np.arange(lo, hi), {"main": images()[lo:hi]}, labels()[lo:hi])
    moment = Moment(position=0, batch_size=B, lr=0.1)
    forward = Forward(run, batch.images, 1, trial)
    chosen_n, start_n4, step = made.drawn(moment)
    plain_nHWC = images()[lo:hi][chosen_n].float()
    before = {name: tensor.clone() for name, tensor in made.head.tensors().items()}
    gradient_n4 = made.gradient(forward, batch, moment, chosen_n, plain_nHWC, start_n4)
    for name, tensor in made.head.tensors().items():
        assert torch.equal(tensor, before[name]), name
    assert network.weight.grad is None
    made.prefetch(forward, batch, moment)
    made.loss(forward, batch, moment).surrogate.backward()
    assert network.weight.grad is not None
    return {
        "chosen": chosen_n + lo,
        "start": start_n4,
        "step": step,
        "gradient": gradient_n4,
        "shown": forward.images("main"),
        "rows": before["rows"],
        "moved": not torch.equal(made.head.tensors()["rows"], before["rows"]),
    }


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[dict[str, Any]]]:
    return {size: run_ranks(size, steps_of_a_rank) for size in (1, 2, 3)}


def whole(ranks: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([rank[name] for rank in ranks])


def loss_of(rows_CD: Tensor, chosen_n: Tensor, warps_n4: Tensor) -> Tensor:
    """CosFace's mean over the valid images among the warped ones, by its definition."""
    pixels_nX = (warped(images()[chosen_n].double(), warps_n4) / 127.5 - 1).flatten(1)
    unit_nD = F.normalize(pixels_nX @ weights().double().T)
    cosines_nC = unit_nD @ F.normalize(rows_CD.double()).T
    labels_n = labels()[chosen_n]
    valid_n = labels_n >= 0
    margins_nC = F.one_hot(labels_n.clamp(min=0), C) * MARGIN
    return F.cross_entropy((SCALE * (cosines_nC - margins_nC))[valid_n], labels_n[valid_n])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_gradient_is_that_of_the_definition(
    worlds: dict[int, list[dict[str, Any]]], size: int
) -> None:
    ranks = worlds[size]
    warps_n4 = whole(ranks, "start").double().requires_grad_()
    loss = loss_of(whole(ranks, "rows"), whole(ranks, "chosen"), warps_n4)
    (expected,) = torch.autograd.grad(loss, warps_n4)
    found = whole(ranks, "gradient").double() / size  # the engine would average over the ranks
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not expected[labels()[whole(ranks, "chosen")] < 0].any()


def test_images_are_warped_to_where_the_loss_grows(worlds: dict[int, list[dict[str, Any]]]) -> None:
    (rank,) = worlds[1]
    chosen_n, start_n4 = rank["chosen"], rank["start"].double()
    direction_n4 = rank["gradient"].double().sign()
    with torch.no_grad():
        before, after = (
            loss_of(rank["rows"], chosen_n, start_n4 + step * direction_n4) for step in (0, 1e-3)
        )
    assert after > before
    others = sorted(set(range(B)) - set(chosen_n.tolist()))
    assert torch.equal(rank["shown"][others], images()[others])
    warps_n4 = start_n4 + rank["step"] * direction_n4
    expected = warped(images()[chosen_n].double(), warps_n4).round().to(torch.uint8)
    assert (rank["shown"][chosen_n].int() - expected.int()).abs().max() <= 1
    assert rank["step"] == pytest.approx(0.1, abs=0.01)
    assert rank["moved"]


def test_every_number_of_ranks_shows_the_same(worlds: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = worlds[1]
    assert 0.4 * B <= len(alone["chosen"]) <= 0.6 * B
    for size in (2, 3):
        for name in ("chosen", "start"):
            assert torch.equal(whole(worlds[size], name), alone[name])
        assert torch.equal(whole(worlds[size], "shown"), alone["shown"])


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.floats(0.5, 2), st.floats(-0.8, 0.8), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
)
def test_a_warp_is_a_similarity_by_bilinear_interpolation(warp: tuple[float, ...]) -> None:
    height, width = 5, 7
    picture_HWC = torch.rand(height, width, 3, dtype=torch.float64).mul_(255)
    found_HWC = warped(picture_HWC[None], torch.tensor([warp], dtype=torch.float64))[0]
    scale, angle, right, down = warp
    for y in range(height):
        for x in range(width):
            u, v = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
            from_u = scale * (np.cos(angle) * u - np.sin(angle) * v) + right
            from_v = scale * (np.sin(angle) * u + np.cos(angle) * v) + down
            at_x, at_y = ((from_u + 1) * width - 1) / 2, ((from_v + 1) * height - 1) / 2
            expected = torch.zeros(3, dtype=torch.float64)
            for i in (int(np.floor(at_y)), int(np.floor(at_y)) + 1):
                for j in (int(np.floor(at_x)), int(np.floor(at_x)) + 1):
                    if 0 <= i < height and 0 <= j < width:
                        share = (1 - abs(at_y - i)) * (1 - abs(at_x - j))
                        expected += share * picture_HWC[i, j]
            torch.testing.assert_close(found_HWC[y, x], expected, rtol=0, atol=1e-6)


def test_what_it_does_not_go_with_is_told() -> None:
    with pytest.raises(ValidationError, match=r"set engine.zero_stage=2"):
        Config.model_validate({**config().model_dump(), "engine": {"zero_stage": 3}})
    with pytest.raises(ValidationError, match=r"does not go with train.micro_batch_size"):
        Config.model_validate({**config().model_dump(), "train": {"micro_batch_size": 4}})
    with pytest.raises(ValidationError, match="has to go from 0 or below"):
        Config.model_validate(
            {**config().model_dump(), "objective": {"kind": "aroface", "scale_range": [0.5, 1]}}
        )
    assert load("quick/aroface", ["data.path=faces"]).objective.word() == "aroface"
