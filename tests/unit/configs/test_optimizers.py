"""Optimisers as kinds: what they keep, what they are made with, and what their fields decide."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from manyfaces.configs import schema
from manyfaces.configs.identity import tensors
from manyfaces.configs.load import dump, load

KINDS = [
    schema.SGD(),
    schema.SGD(momentum=0),
    schema.AdamW(),
    schema.AdamW(betas=(0.5, 0.9), eps=1e-6),
]


def config_with(optimizer: schema.Optimizer) -> schema.Config:
    train = schema.Train(optimizer=optimizer)
    return schema.Config.model_validate({"model": "mobilefacenet", "train": train})


@pytest.mark.parametrize("optimizer", KINDS, ids=str)
def test_torch_keeps_the_moments_that_are_declared(optimizer: schema.Optimizer) -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    made = optimizer.build(params=[{"params": [weight], "weight_decay": 0.5}])
    assert made.param_groups[0]["lr"] == optimizer.lr
    weight.square().sum().backward()
    made.step()
    kept = {name for name, value in made.state[weight].items() if value is not None}
    assert kept - {"step"} == set(optimizer.moments)
    assert all(made.state[weight][name].shape == weight.shape for name in optimizer.moments)
    assert optimizer.num_states == len(optimizer.moments)


def test_only_the_kind_and_the_presence_of_momentum_decide_tensors() -> None:
    def decided(optimizer: schema.Optimizer) -> dict[str, object]:
        found = tensors(config_with(optimizer))
        return {key: value for key, value in found.items() if key.startswith("train.")}

    usual = {"train.optimizer.kind": "sgd", "train.optimizer.momentum": "above 0"}
    assert decided(schema.SGD()) == usual
    groups = (schema.Group(match="fc.*", lr_scale=2, weight_decay=0),)
    changed = schema.SGD(
        lr=1,
        momentum=0.5,
        weight_decay=1,
        layer_decay=0.5,
        decay_norms_and_biases=False,
        groups=groups,
    )
    assert decided(changed) == usual
    assert decided(schema.SGD(momentum=0)) == usual | {"train.optimizer.momentum": "0"}
    assert decided(schema.AdamW(betas=(0, 0))) == {"train.optimizer.kind": "adamw"}


@given(
    kind=st.sampled_from(["sgd", "adamw"]),
    layer_decay=st.none() | st.floats(0, 1, exclude_min=True),
    norms=st.booleans(),
    groups=st.lists(
        st.fixed_dictionaries(
            {"match": st.sampled_from(["*.bias", "fc.*"])},
            optional={"lr_scale": st.floats(0, 9), "weight_decay": st.none() | st.floats(0, 9)},
        ),
        max_size=3,
    ),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_groups_load_back_from_yaml(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    layer_decay: float | None,
    norms: bool,
    groups: list[dict[str, object]],
) -> None:
    optimizer = {
        "kind": kind,
        "layer_decay": layer_decay,
        "decay_norms_and_biases": norms,
        "groups": groups,
    }
    train = {"optimizer": optimizer}
    config = schema.Config.model_validate({"model": "mobilefacenet", "train": train})
    path = tmp_path_factory.getbasetemp() / "groups.yaml"
    path.write_text(dump(config))
    assert load(path) == config


@pytest.mark.parametrize("value", [0, 1.5, -1])
def test_layer_decay_is_a_share(value: float) -> None:
    with pytest.raises(ValidationError):
        schema.SGD(layer_decay=value)
