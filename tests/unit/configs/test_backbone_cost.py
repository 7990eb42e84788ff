"""The cost of each backbone against the module that it builds, torch's own counter and the
published tables."""

import pytest
import torch
from counted_network import counted, num_parameters
from torch import Tensor

from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import VIT, ViT

CONVOLUTIONAL = [
    (IResNet(depth=18), (112, 112)),
    (IResNet(depth=34, embedding_dim=64), (96, 96)),
    (IResNet(depth=50), (112, 112)),
    (IResNet(depth=100, embedding_dim=256), (111, 111)),
    (IResNet(depth=18, embedding_dim=32), (256, 128)),
    (IResNet(depth=18, embedding_dim=32), (97, 130)),
    (MobileFaceNet(scale=1, embedding_dim=128), (112, 112)),
    (MobileFaceNet(scale=2), (112, 112)),
    (MobileFaceNet(scale=4, embedding_dim=32), (90, 90)),
    (MobileFaceNet(scale=1, embedding_dim=32), (128, 64)),
    (MobileFaceNet(scale=2, embedding_dim=32), (65, 112)),
    (MobileFaceNet(scale=1, neck="none"), (64, 64)),
    (IResNet(depth=18, neck="layernorm"), (64, 64)),
    (IResNet(depth=18, neck="none"), (64, 64)),
]
TRANSFORMERS = [
    *((ViT(size=size), (112, 112)) for size in VIT),
    (ViT(size="tiny", embedding_dim=64), (96, 96)),
    (ViT(size="tiny", embedding_dim=64), (64, 128)),
    (ViT(size="small", embedding_dim=64), (256, 128)),
    (ViT(size="tiny", neck="layernorm"), (64, 64)),
    (ViT(size="tiny", neck="none"), (64, 64)),
]


def case_id(value: object) -> str:
    if isinstance(value, Backbone):
        chosen = value.model_dump(exclude_defaults=True).values()
        return "-".join([str(value.word()), *map(str, chosen)])
    return "x".join(map(str, value)) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(("config", "image_hw"), CONVOLUTIONAL, ids=case_id)
def test_convolutional_parameters_and_multiply_adds(
    config: Backbone, image_hw: tuple[int, int]
) -> None:
    model, output, multiply_adds = counted(config, image_hw)
    assert output.embeddings["main"].shape == (2, config.embedding_dim)
    found = config.cost(image_hw)
    assert (found.parameters, found.multiply_adds) == (num_parameters(model), multiply_adds)


@pytest.mark.parametrize(("config", "image_hw"), TRANSFORMERS, ids=case_id)
def test_vit_parameters_and_tokens(config: ViT, image_hw: tuple[int, int]) -> None:
    model, output, _ = counted(config, image_hw)
    assert config.cost(image_hw).parameters == num_parameters(model)
    assert output.embeddings["main"].shape == (2, config.embedding_dim)
    patch_px = VIT[config.size].patch_px
    num_tokens = (image_hw[0] // patch_px) * (image_hw[1] // patch_px)
    assert output.tokens_NTD.shape == (2, num_tokens, VIT[config.size].width)


@pytest.mark.parametrize("image_hw", [(112, 112), (64, 128), (256, 128)])
def test_vit_multiply_adds(image_hw: tuple[int, int]) -> None:
    config = ViT(size="tiny", embedding_dim=64)
    _, _, multiply_adds = counted(config, image_hw)
    assert config.cost(image_hw).multiply_adds == multiply_adds


@pytest.mark.parametrize(
    ("config", "published_g"),
    # InsightFace, recognition/arcface_torch/README.md: "ViT For Face Recognition", and its table of
    # MobileFaceNet as 0.45 G.
    [
        (IResNet(depth=18), 2.6),
        (IResNet(depth=50), 6.3),
        (IResNet(depth=100), 12.1),
        (IResNet(depth=200), 23.5),
        (ViT(size="tiny"), 1.5),
        (ViT(size="small"), 5.7),
        (ViT(size="base"), 11.4),
        (ViT(size="large"), 25.3),
    ],
    ids=case_id,
)
def test_multiply_adds_as_published(config: Backbone, published_g: float) -> None:
    assert config.cost((112, 112)).multiply_adds / 1e9 == pytest.approx(published_g, rel=0.015)


@pytest.mark.parametrize(
    ("config", "image_hw"),
    [
        (IResNet(depth=18), (112, 112)),
        (MobileFaceNet(scale=1), (112, 112)),
        (ViT(size="tiny"), (112, 112)),
        (IResNet(depth=18), (64, 96)),
    ],
    ids=case_id,
)
def test_activations_are_what_autograd_keeps(config: Backbone, image_hw: tuple[int, int]) -> None:
    module = config.build(image_hw=image_hw)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(torch.zeros(2, 3, *image_hw))
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
    assert config.cost(image_hw).activations == pytest.approx(elements, rel=0.03)
