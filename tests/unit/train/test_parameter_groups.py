"""Which weights are trained with which learning rate and decay."""

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manyfaces.configs import schema
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import ViT
from manyfaces.configs.errors import UserError
from manyfaces.train.parameter_groups import ParamGroup, groups_of

with torch.device("meta"):
    NETWORKS = [
        IResNet(depth=18, embedding_dim=8).build(image_hw=(36, 27)),
        MobileFaceNet(scale=1, embedding_dim=8).build(image_hw=(36, 27)),
        ViT(size="tiny", embedding_dim=8).build(image_hw=(36, 27)),
    ]
    NETWORKS[2].patch_embed.requires_grad_(False)
GLOBS = ["*.bias", "*conv1*", "blocks.0.*", "fc.*", "*.weight", "layer?.0.*", "*"]


def optimizer(**settings: Any) -> schema.Optimizer:
    return schema.Train(optimizer={"kind": "adamw", **settings}).optimizer


def by_name(groups: list[ParamGroup]) -> dict[str, ParamGroup]:
    """The group of each weight; each weight is in one."""
    found = [(name, group) for group in groups for name in group.parameters]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_default_settings_make_one_group(network: nn.Module, kind: str) -> None:
    settings = schema.Train(optimizer={"kind": kind}).optimizer
    (group,) = groups_of(network, settings)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert list(group.parameters) == list(trained)
    assert all(group.parameters[name] is p for name, p in trained.items())
    assert (group.name, group.lr_scale, group.weight_decay) == ("all", 1.0, settings.weight_decay)


@given(
    number=st.integers(0, 2),
    layer_decay=st.none() | st.floats(0.1, 1),
    decay_all=st.booleans(),
    matches=st.lists(st.sampled_from(GLOBS), max_size=3, unique=True),
    own_decay=st.none() | st.floats(0, 1),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_every_trained_weight_is_in_one_group_with_its_rate_and_decay(
    number: int,
    layer_decay: float | None,
    decay_all: bool,
    matches: list[str],
    own_decay: float | None,
) -> None:
    network = NETWORKS[number]
    groups = [
        {"match": match, "lr_scale": 2.0 + place, "weight_decay": own_decay}
        for place, match in enumerate(matches)
    ]
    config = optimizer(layer_decay=layer_decay, decay_norms_and_biases=decay_all, groups=groups)
    try:
        made = groups_of(network, config)
    except UserError as error:
        assert "matches none" in str(error) or "match all of its" in str(error)  # noqa: PT017
        return
    found = by_name(made)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert found.keys() == trained.keys()
    for name, parameter in trained.items():
        assert found[name].parameters[name] is parameter
        place = next((i for i, match in enumerate(matches) if fnmatchcase(name, match)), None)
        scale = 1.0 if place is None else 2.0 + place
        if layer_decay is not None:
            scale *= layer_decay ** (network.num_depths - 1 - network.depths()[name])
        assert found[name].lr_scale == pytest.approx(scale)
        decay = config.weight_decay if decay_all or parameter.ndim > 1 else 0.0
        if place is not None and own_decay is not None:
            decay = own_decay
        assert found[name].weight_decay == decay
    assert len({(g.name, g.lr_scale, g.weight_decay) for g in made}) == len(made)


def test_rates_fall_from_block_to_block() -> None:
    found = by_name(groups_of(NETWORKS[2], optimizer(layer_decay=0.5)))
    assert found["feature.0.weight"].lr_scale == 1.0
    assert found["norm.weight"].lr_scale == 1.0
    assert found["blocks.11.qkv.weight"].lr_scale == 0.5
    assert found["blocks.0.qkv.weight"].lr_scale == 0.5**12
    assert found["pos_embed"].lr_scale == 0.5**13
    assert found["pos_embed"].name == "lr x 0.000122"


def test_what_is_trained_beside_a_backbone_keeps_the_whole_rate() -> None:
    network = nn.ModuleDict({"backbone": NETWORKS[0], "projector": nn.Linear(8, 8)})
    found = by_name(groups_of(network, optimizer(layer_decay=0.5)))
    assert found["projector.weight"].lr_scale == 1.0
    assert found["backbone.fc.weight"].lr_scale == 1.0
    assert found["backbone.conv1.weight"].lr_scale == 0.5**9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"groups": [{"match": "layer9.*"}]},
            r"train\.optimizer\.groups\[0\]\.match 'layer9\.\*' matches none of the network's \d+ "
            r"trained weights \(conv1\.weight, .*correct the pattern",
        ),
        (
            {"groups": [{"match": "*"}, {"match": "fc.*"}]},
            r"groups\[1\]\.match 'fc\.\*': groups before it match all of its 2 weights already",
        ),
        ({"groups": [{"match": "features.weight"}]}, "matches none"),  # it is frozen
    ],
)
def test_patterns_that_do_nothing_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        groups_of(NETWORKS[0], optimizer(**settings))


def test_layer_decay_needs_blocks() -> None:
    with pytest.raises(UserError, match=r"layer_decay 0\.5: the network names no blocks"):
        groups_of(nn.Linear(2, 2), optimizer(layer_decay=0.5))
