"""The cost functions against the modules that are built, torch's own counter and the published
tables."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from manyfaces.configs.architectures import VIT, Cost, iresnet_cost, mobilefacenet_cost, vit_cost
from manyfaces.models.backbones.iresnet import IResNet
from manyfaces.models.backbones.mobilefacenet import MobileFaceNet
from manyfaces.models.backbones.vit import ViT

CONVOLUTIONAL = [
    *(
        (f"r{depth}", IResNet, iresnet_cost, depth, px, dim)
        for depth, px, dim in [(18, 112, 512), (34, 96, 64), (50, 112, 512), (100, 111, 256)]
    ),
    *(
        (f"mbf{scale}", MobileFaceNet, mobilefacenet_cost, scale, px, dim)
        for scale, px, dim in [(1, 112, 128), (2, 112, 512), (4, 90, 32)]
    ),
]


@pytest.mark.parametrize(
    ("build", "cost", "size", "px", "dim"),
    [case[1:] for case in CONVOLUTIONAL],
    ids=[case[0] for case in CONVOLUTIONAL],
)
def test_convolutional_parameters_and_multiply_adds(
    build: Callable[..., nn.Module], cost: Callable[..., Cost], size: int, px: int, dim: int
) -> None:
    with torch.device("meta"):
        model = build(size, px, dim).eval()
        images = torch.empty(2, 3, px, px)
    with FlopCounterMode(display=False) as counter:
        assert model(images).shape == (2, dim)
    found = cost(size, px, dim)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (
        found.multiply_adds == counter.get_total_flops() / 2 / 2
    )  # two images; a multiply-add is two operations to torch


@pytest.mark.parametrize(
    ("size", "px", "dim"), [*((size, 112, 512) for size in VIT), ("tiny", 96, 64)]
)
def test_vit_parameters(size: str, px: int, dim: int) -> None:
    with torch.device("meta"):
        model = ViT(size, px, dim)
    assert vit_cost(size, px, dim).parameters == sum(
        parameter.numel() for parameter in model.parameters()
    )


@pytest.mark.parametrize(
    ("cost", "published_g"),
    # InsightFace, recognition/arcface_torch/README.md: "ViT For Face Recognition", and its table of
    # MobileFaceNet as 0.45 G.
    [
        (iresnet_cost(18, 112, 512), 2.6),
        (iresnet_cost(50, 112, 512), 6.3),
        (iresnet_cost(100, 112, 512), 12.1),
        (iresnet_cost(200, 112, 512), 23.5),
        (vit_cost("tiny", 112, 512), 1.5),
        (vit_cost("small", 112, 512), 5.7),
        (vit_cost("base", 112, 512), 11.4),
        (vit_cost("large", 112, 512), 25.3),
    ],
)
def test_multiply_adds_as_published(cost: Cost, published_g: float) -> None:
    assert cost.multiply_adds / 1e9 == pytest.approx(published_g, rel=0.015)


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        (lambda: IResNet(18), iresnet_cost(18, 112, 512)),
        (lambda: MobileFaceNet(1), mobilefacenet_cost(1, 112, 512)),
        (lambda: ViT("tiny"), vit_cost("tiny", 112, 512)),
    ],
    ids=["r18", "mbf1", "vit_tiny"],
)
def test_activations_are_near_what_autograd_keeps_and_not_below(
    model: Callable[[], nn.Module], cost: Cost
) -> None:
    module = model()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(torch.zeros(2, 3, 112, 112))
    elements = (
        sum(
            tensor.untyped_storage().nbytes()
            for pointer, tensor in kept.items()
            if pointer not in own
        )
        / 4
        / 2
    )
    del out
    # ViT's estimate has the attention matrices, which a fused kernel does not keep.
    assert 0.55 * cost.activations < elements < 1.02 * cost.activations
