"""Backbones of timm: small ones of each build, at the size of aligned faces and others; what cannot
be built is one line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counted_network import counted, num_parameters

from manyfaces.configs.backbones.timm import Timm
from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import identity, tensors
from manyfaces.configs.load import dump, load
from manyfaces.configs.optimizers.adamw import AdamW
from manyfaces.configs.plan import plan
from manyfaces.configs.plan_lines import lines
from manyfaces.configs.schema import Config
from manyfaces.models.backbones.activation_checkpoint import checkpoint_activations
from manyfaces.models.backbones.pixels import to_input
from manyfaces.models.backbones.timm import library
from manyfaces.train.parameter_groups import groups_of

HW = (112, 112)
TINY: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}
CONVNEXT: dict[str, Any] = {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]}


def vit(**more: Any) -> Timm:
    fields = {"name": "vit_tiny_patch16_224", "embedding_dim": 8, "parameters": TINY} | more
    return Timm(**fields)


def convnext(**more: Any) -> Timm:
    return Timm(name="convnext_tiny", embedding_dim=8, parameters=CONVNEXT, **more)


def small(name: str, parameters: dict[str, Any], **more: Any) -> Timm:
    return Timm(name=name, embedding_dim=8, parameters=parameters, **more)


KINDS = [
    pytest.param(vit(), 2, 49, id="vit"),
    pytest.param(small("vit_small_patch14_dinov2", TINY), 2, 64, id="dinov2"),
    pytest.param(small("vit_small_patch14_reg4_dinov2", TINY), 2, 64, id="dinov2 with registers"),
    pytest.param(small("vit_small_patch16_dinov3", TINY), 2, 49, id="dinov3"),
    pytest.param(small("vit_base_patch16_clip_224.openai", TINY), 2, 49, id="clip"),
    pytest.param(small("swin_tiny_patch4_window7_224", SWIN), 5, None, id="swin"),
    pytest.param(convnext(), 5, None, id="convnext"),
    pytest.param(small("resnet18", {"channels": [8, 8, 16, 16]}), 8, None, id="resnet"),
]


@pytest.mark.parametrize(("config", "num_blocks", "num_tokens"), KINDS)
def test_each_build_at_112_px(config: Timm, num_blocks: int, num_tokens: int | None) -> None:
    network = config.build(image_hw=HW)
    output = network(torch.randn(2, 3, *HW))
    assert output.embeddings["main"].shape == (2, 8)
    assert (output.tokens_NTD is None) == (num_tokens is None)
    if output.tokens_NTD is not None:
        assert output.tokens_NTD.shape == (2, num_tokens, 24)
    output.embeddings["main"].square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)

    assert len(network.list_blocks()) == num_blocks
    depths = network.depths()
    assert depths.keys() == dict(network.named_parameters()).keys()
    assert sorted(set(depths.values())) == list(range(num_blocks + 2))
    assert list(depths.values()) == sorted(depths.values())
    assert depths["feature.0.weight"] == num_blocks + 1


@pytest.mark.parametrize("pool", [None, "avg", "max", "token", "flatten"])
def test_pools_of_images_that_are_not_square(pool: Any) -> None:
    network = vit(pool=pool).build(image_hw=(64, 96)).eval()
    images = torch.randn(2, 3, 64, 96)
    output = network(images)
    assert output.tokens_NTD.shape == (2, 24, 24)
    assert network.feature[0].in_features == (24 * 24 if pool == "flatten" else 24)
    if pool == "flatten":
        expected = network.feature(output.tokens_NTD.flatten(1))
        assert torch.equal(output.embeddings["main"], expected)


def test_weights_that_the_embedding_does_not_depend_on_are_frozen() -> None:
    frozen = {
        pool: [
            name
            for name, p in convnext(pool=pool).build(image_hw=HW).named_parameters()
            if not p.requires_grad
        ]
        for pool in (None, "flatten")
    }
    assert frozen == {
        None: [],
        "flatten": ["trunk.head.norm.weight", "trunk.head.norm.bias"],
    }


def test_activation_checkpointing_changes_nothing() -> None:
    images, gradients = torch.randn(4, 3, *HW), []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        network = vit(drop_path=0.5, parameters=TINY | {"proj_drop_rate": 0.2}).build(image_hw=HW)
        if checkpointed:
            checkpoint_activations(network)
        torch.manual_seed(4)
        network(images).embeddings["main"].square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_learning_rates_by_depth() -> None:
    network = vit().build(image_hw=HW)
    rates = {
        name: group.lr_scale
        for group in groups_of(network, AdamW(layer_decay=0.5))
        for name in group.parameters
    }
    assert rates["trunk.cls_token"] == rates["trunk.patch_embed.proj.weight"] == 0.125
    assert rates["trunk.blocks.0.attn.qkv.weight"] == 0.25
    assert rates["trunk.blocks.1.mlp.fc2.bias"] == 0.5
    assert rates["trunk.norm.weight"] == rates["feature.0.weight"] == 1


def test_pixels_have_timms_mean_and_deviation_of_the_name() -> None:
    images_NHWC = torch.randint(0, 256, (2, *HW, 3), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    own = (images_NHWC.permute(0, 3, 1, 2) / 255 - mean) / std
    half = (127.5, 127.5, 127.5)
    ours = images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
    for pixels, normalised in (({}, own), ({"pixel_mean": half, "pixel_std": half}, ours)):
        config = small("vit_base_patch16_clip_224.openai", TINY, **pixels)
        network = config.build(image_hw=HW).eval()
        found = network(to_input(images_NHWC, config)).embeddings["main"]
        expected = network.feature(network.trunk(normalised))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def refusal(config: Timm, image_hw: tuple[int, int] = HW) -> str:
    """The one line that is told where a network cannot be built."""
    with pytest.raises(UserError) as caught:
        config.build(image_hw=image_hw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_built_is_one_line() -> None:
    told = refusal(small("maxvit_tiny_tf_224", {"depths": [1, 1, 1, 1]}))
    assert "cannot build maxvit_tiny_tf_224(depths=[1, 1, 1, 1]) for images of 112 x 112 px" in told
    assert told.endswith("224 x 224 px; change data.image_px, model.pool or model.parameters")
    assert "unexpected keyword argument 'width'" in refusal(vit(parameters={"width": 3}))
    assert "Invalid pool type: token" in refusal(convnext(pool="token"))


def test_names_that_timm_does_not_have() -> None:
    told = refusal(vit(name="vit_tiny_patch_16_224"))
    assert "no such network; did you mean vit_tiny_patch16_224, " in told
    told = refusal(vit(name="vit_base_patch16_clip_224.opnai"))
    assert "did you mean vit_base_patch16_clip_224.openai, " in told
    assert "timm.list_models() has them all" in refusal(vit(name="zzz"))


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_without_timm_one_line_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    told = refusal(vit())
    assert f"model.kind timm: {missing} is not installed; pip install 'manyfaces[timm]'" in told


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a build must not open a connection")

    monkeypatch.setattr("socket.socket.connect", connect)
    small("vit_base_patch16_clip_224.openai", TINY).build(image_hw=HW)


def loaded(tmp_path: Path, model: str) -> Config:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{kind: timm, {model}}}\n")
    return load(recipe)


def test_from_the_recipe_and_back(tmp_path: Path) -> None:
    config = loaded(tmp_path, "name: swin_tiny_patch4_window7_224, parameters: {depths: [1, 2]}")
    assert config.model.arguments()["parameters"] == {"depths": [1, 2]}
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config
    assert identity(config)["model.name"] == "swin_tiny_patch4_window7_224"
    assert tensors(config)["model.parameters"] == {"depths": [1, 2]}
    assert "model.drop_path" not in tensors(config)
    assert "model.num_parameters" not in identity(config)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("name: resnet18, parameters: {pretrained: true}", "weights come from model.init alone"),
        ("name: resnet18, parameters: {checkpoint_path: a.pth}", "weights come from model.init"),
        ("name: resnet18, parameters: {img_size: 112}", "img_size is not for timm: set data.image"),
        ("name: 'hf-hub:timm/resnet18.a1_in1k'", "model.name: must be text like"),
        ("name: resnet18, pool: mean", "model.pool: must be avg, max, avgmax, token, map or"),
        ("embedding_dim: 8", "model.name: is missing"),
    ],
)
def test_what_is_refused_before_anything_is_built(tmp_path: Path, model: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, model)
    (line,) = str(caught.value).splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("config", "image_hw"),
    [
        (Timm(name="vit_base_patch16_224"), HW),
        (Timm(name="vit_small_patch14_dinov2", pool="flatten"), HW),
        (Timm(name="vit_small_patch14_reg4_dinov2"), (140, 112)),
        (Timm(name="vit_large_patch16_dinov3"), HW),
        (Timm(name="vit_base_patch32_clip_224.openai", embedding_dim=128), (224, 224)),
        (Timm(name="eva02_tiny_patch14_224"), HW),
        (Timm(name="deit3_small_patch16_224", parameters={"patch_size": 8, "depth": 3}), HW),
        (vit(parameters=TINY | {"mlp_ratio": 2}), HW),
        (vit(neck="layernorm"), HW),
        (vit(neck="none"), HW),
    ],
    ids=lambda value: value.name if isinstance(value, Timm) else "",
)
def test_the_cost_of_vision_transformers(config: Timm, image_hw: tuple[int, int]) -> None:
    network, _, multiply_adds = counted(config, image_hw)
    found = config.cost(image_hw)
    assert found.parameters == pytest.approx(num_parameters(network), rel=0.02)
    assert found.multiply_adds == pytest.approx(multiply_adds, rel=0.02)
    assert found.activations > 0


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "vit_base_patch16_siglip_224", "vit_base_patch16_plus_240"]
)
def test_the_plan_says_what_it_does_not_know(name: str) -> None:
    def backbone(**more: Any) -> str:
        config = Config(model=Timm(name=name, **more))
        return dict(lines(plan(config, 1000, 10, 1)))["backbone"]

    unknown = "unknown and not in the figures below"
    assert backbone() == (
        f"{unknown} (model.num_parameters) parameters, {unknown} (model.multiply_adds) "
        "multiply-adds an image"
    )
    told = backbone(num_parameters=28_000_000, multiply_adds=1_100_000_000)
    assert told == "28 M parameters, 1.1 G multiply-adds an image"
