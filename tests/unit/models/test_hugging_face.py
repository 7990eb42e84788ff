"""Files of Hugging Face's vision transformers in timm's networks: their outputs are those of the
architectures as Hugging Face defines them, written here in plain torch from their own names."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from manyfaces.configs.backbones.timm import Timm
from manyfaces.models.backbones.init import load_initial
from manyfaces.models.backbones.timm import TimmBackbone

WIDTH, DEPTH, HEADS, SIDE = 24, 2, 3, 4
"""Of the networks here; head vectors have 8 numbers, images 4 x 4 patches."""


@dataclass(frozen=True)
class Family:
    """One of Hugging Face's architectures: its names, and in what it differs from the others."""

    timm: str
    patch_px: int
    block: str
    """What the names in block N begin with."""
    parts: tuple[str, ...]
    """Names in a block: norm before attention, query, key, value, projection, norm before the
    perceptron, its two layers."""
    patch: str = "embeddings.patch_embeddings.projection"
    cls: str = "embeddings.cls_token"
    positions: str = "embeddings.position_embeddings"
    norm: str = "layernorm"
    prefix: str = ""
    eps: float = 1e-6
    act: Callable[[Tensor], Tensor] = F.gelu
    scales: bool = False
    registers: int = 0
    rotary: bool = False
    norm_before: str = ""
    unused: tuple[str, ...] = ()
    """Names of weights that the file has besides."""


INNER = "attention.attention."
VIT_PARTS = (
    "layernorm_before",
    *(INNER + each for each in ("query", "key", "value")),
    "attention.output.dense",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
)
DINO_PARTS = ("norm1", *VIT_PARTS[1:5], "norm2", "mlp.fc1", "mlp.fc2")
CLIP_PARTS = (
    "layer_norm1",
    *(f"self_attn.{each}" for each in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *("layer_norm2", "mlp.fc1", "mlp.fc2"),
)
DINO3_PARTS = (
    "norm1",
    *(f"attention.{each}" for each in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *("norm2", "mlp.up_proj", "mlp.down_proj"),
)
ENCODER = "encoder.layer."
VIT = Family(
    "vit_tiny_patch16_224", 16, ENCODER, VIT_PARTS, prefix="vit.", unused=("classifier.weight",)
)
DINO2 = Family(
    "vit_small_patch14_dinov2",
    14,
    ENCODER,
    DINO_PARTS,
    scales=True,
    unused=("embeddings.mask_token",),
)
DINO2_REGISTERS = Family(
    "vit_small_patch14_reg4_dinov2", 14, ENCODER, DINO_PARTS, scales=True, registers=4
)
CLIP = Family(
    "vit_base_patch16_clip_quickgelu_224.openai",
    16,
    "encoder.layers.",
    CLIP_PARTS,
    patch="embeddings.patch_embedding",
    cls="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    norm="post_layernorm",
    prefix="vision_model.",
    eps=1e-5,
    act=lambda x: x * torch.sigmoid(1.702 * x),
    norm_before="pre_layrnorm",
    unused=("text_model.encoder.layers.0.self_attn.q_proj.weight", "visual_projection.weight"),
)
DINO3 = Family(
    "vit_small_patch16_dinov3_qkvb",
    16,
    "layer.",
    DINO3_PARTS,
    patch="embeddings.patch_embeddings",
    positions="",
    norm="norm",
    eps=1e-5,
    scales=True,
    registers=4,
    rotary=True,
)
FAMILIES = [
    pytest.param(VIT, id="vit"),
    pytest.param(DINO2, id="dinov2"),
    pytest.param(DINO2_REGISTERS, id="dinov2 with registers"),
    pytest.param(CLIP, id="clip"),
    pytest.param(DINO3, id="dinov3"),
]


def weights_of(family: Family, side: int = SIDE) -> dict[str, Tensor]:
    """Random weights under Hugging Face's names, for images of side x side patches."""
    generator = torch.Generator().manual_seed(5)
    shapes: dict[str, tuple[int, ...]] = {
        family.cls: (WIDTH,) if family is CLIP else (1, 1, WIDTH),
        f"{family.patch}.weight": (WIDTH, 3, family.patch_px, family.patch_px),
    }
    if family is not CLIP:
        shapes[f"{family.patch}.bias"] = (WIDTH,)
    if family.positions:
        positions = (side * side + 1, WIDTH)
        shapes[family.positions] = positions if family is CLIP else (1, *positions)
    if family.registers:
        shapes["embeddings.register_tokens"] = (1, family.registers, WIDTH)
    for norm in filter(None, (family.norm, family.norm_before)):
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    for number in range(DEPTH):
        start = f"{family.block}{number}."
        for part in family.parts:
            into = 4 * WIDTH if part == family.parts[7] else WIDTH
            out = 4 * WIDTH if part == family.parts[6] else WIDTH
            is_norm = part in (family.parts[0], family.parts[5])
            shapes[f"{start}{part}.weight"] = (WIDTH,) if is_norm else (out, into)
            shapes[f"{start}{part}.bias"] = (out,)
        if family.rotary:  # no bias of keys
            del shapes[f"{start}{family.parts[2]}.bias"]
        if family.scales:
            shapes |= {f"{start}layer_scale{each}.lambda1": (WIDTH,) for each in (1, 2)}
    made = {
        f"{family.prefix}{name}": torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
        for name, shape in shapes.items()
    }
    return made | {name: torch.zeros(3) for name in family.unused}


def rotated(heads_NHTD: Tensor, side: int, num_before: int) -> Tensor:
    """DINOv3's rotary positions of the patches: their centres from -1 to 1 at periods from 1 to
    100, rows and columns each half of the angles, the angles once for each half of a vector."""
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    periods = 100 ** torch.arange(0, 1, 4 / heads_NHTD.shape[-1])
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1).tile(2)
    patches = heads_NHTD[:, :, num_before:]
    one, other = patches.chunk(2, -1)
    turned = patches * angles.cos() + torch.cat([-other, one], -1) * angles.sin()
    return torch.cat([heads_NHTD[:, :, :num_before], turned], 2)


def tokens_of(family: Family, weights: dict[str, Tensor], images_NCHW: Tensor) -> Tensor:
    """All last tokens as the architecture defines them: class token, registers, patches."""
    own = {name.removeprefix(family.prefix): weight for name, weight in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, own[f"{name}.weight"], own.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), own[f"{name}.weight"], own[f"{name}.bias"], family.eps)

    def attention(x: Tensor, names: tuple[str, ...]) -> Tensor:
        q, k, v = (linear(x, name).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in names[:3])
        if family.rotary:
            q, k = (rotated(each, SIDE, 1 + family.registers) for each in (q, k))
        shares = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH / HEADS)).softmax(-1)
        return linear((shares @ v).transpose(1, 2).flatten(2), names[3])

    patch = own[f"{family.patch}.weight"]
    x = F.conv2d(images_NCHW, patch, own.get(f"{family.patch}.bias"), stride=family.patch_px)
    cls = own[family.cls].reshape(1, 1, WIDTH).expand(len(x), 1, WIDTH)
    x = torch.cat([cls, x.flatten(2).transpose(1, 2)], 1)
    if family.positions:
        x = x + own[family.positions]
    if family.registers:
        registers = own["embeddings.register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    if family.norm_before:
        x = norm(x, family.norm_before)
    for number in range(DEPTH):
        start = f"{family.block}{number}."
        names = tuple(start + part for part in family.parts)
        scales = [own.get(f"{start}layer_scale{each}.lambda1", torch.ones(1)) for each in (1, 2)]
        x = x + scales[0] * attention(norm(x, names[0]), names[1:5])
        x = x + scales[1] * linear(family.act(linear(norm(x, names[5]), names[6])), names[7])
    return norm(x, family.norm)


def network_of(family: Family, image_hw: tuple[int, int], **parameters: Any) -> TimmBackbone:
    given = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS} | parameters
    config = Timm(name=family.timm, pool="token", embedding_dim=8, parameters=given)
    network = config.build(image_hw=image_hw).eval()
    assert isinstance(network, TimmBackbone)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_the_outputs_of_its_architecture(family: Family, tmp_path: Path) -> None:
    px = SIDE * family.patch_px
    weights, network = weights_of(family), network_of(family, (px, px))
    save_file(weights, tmp_path / "model.safetensors")
    found = load_initial(network, tmp_path)
    assert all(name.startswith("feature.") for name in found.missing)
    assert len(found.missing) == 5
    assert found.other_shape == found.resized == ()
    assert len(found.unused) == len(family.unused)

    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(6))
    expected = tokens_of(family, weights, images)
    with torch.no_grad():
        torch.testing.assert_close(network.trunk.forward_features(images), expected)
        output = network((images * network.std) + network.mean)
        main = network.feature(expected[:, 0])
    patches = expected[:, 1 + family.registers :]
    torch.testing.assert_close(output.tokens_NTD, patches, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.embeddings["main"], main, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", [VIT, DINO2_REGISTERS, CLIP], ids=["vit", "dinov2 with registers", "clip"]
)
def test_positions_of_another_image_size_are_interpolated(family: Family, tmp_path: Path) -> None:
    px, theirs = SIDE * family.patch_px, SIDE + 3
    weights, network = weights_of(family, theirs), network_of(family, (px, px))
    save_file(weights, tmp_path / "model.safetensors")
    found = load_initial(network, tmp_path)
    (told,) = found.resized
    assert told.startswith("trunk.pos_embed [1, ")
    assert "trunk.pos_embed" in found.matched
    assert found.other_shape == ()
    assert found.rows()[-1] == ("matched, interpolated", 1, told)

    name = family.prefix + family.positions
    flat = weights[name].reshape(-1, WIDTH)
    grid = flat[1:].T.reshape(1, WIDTH, theirs, theirs)
    small = F.interpolate(grid, (SIDE, SIDE), mode="bicubic", antialias=True)
    resized = torch.cat([flat[:1], small.reshape(WIDTH, -1).T])
    images = torch.randn(2, 3, px, px)
    expected = tokens_of(family, weights | {name: resized}, images)
    with torch.no_grad():
        torch.testing.assert_close(network.trunk.forward_features(images), expected)


def test_positions_of_an_image_that_is_not_square(tmp_path: Path) -> None:
    save_file(weights_of(VIT), tmp_path / "model.safetensors")
    network = network_of(VIT, (48, 96))
    assert load_initial(network, tmp_path).resized == (
        "trunk.pos_embed [1, 17, 24] there, [1, 19, 24] here",
    )


def test_patches_of_another_size_are_interpolated(tmp_path: Path) -> None:
    save_file(weights_of(CLIP), tmp_path / "model.safetensors")
    network = network_of(CLIP, (32, 32), patch_size=8)
    found = load_initial(network, tmp_path)
    assert found.resized == (
        "trunk.patch_embed.proj.weight [24, 3, 16, 16] there, [24, 3, 8, 8] here",
    )


def test_weights_of_another_width_are_not_interpolated(tmp_path: Path) -> None:
    save_file(weights_of(VIT), tmp_path / "model.safetensors")
    network = network_of(VIT, (64, 64), embed_dim=48)
    assert network.resized("trunk.pos_embed", torch.zeros(1, 17, 24)) is None
    assert network.resized("trunk.patch_embed.proj.weight", torch.zeros(24, 3, 8, 8)) is None
    assert network.resized("trunk.norm.weight", torch.zeros(24)) is None
    assert network.resized("trunk.pos_embed", torch.zeros(1, 18, 48)) is None


@pytest.mark.parametrize("wrapped", ["", "module.", "model."])
def test_a_file_of_timm(tmp_path: Path, wrapped: str) -> None:
    torch.manual_seed(1)
    trained = network_of(DINO3, (64, 64))
    theirs = {f"{wrapped}{name}": w for name, w in trained.trunk.state_dict().items()}
    save_file(theirs | {"head.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    fresh = network_of(DINO3, (64, 64))
    found = load_initial(fresh, tmp_path / "a.safetensors")
    assert found.unused == ("head.weight",)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fresh.trunk(images), trained.trunk(images))


def test_a_file_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = network_of(VIT, (64, 64))
    save_file(trained.state_dict(), tmp_path / "backbone.safetensors")
    fresh = network_of(VIT, (64, 64))
    found = load_initial(fresh, tmp_path)
    assert found.missing == found.unused == found.other_shape == ()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fresh(images).embeddings["main"], trained(images).embeddings["main"])


def test_windows_of_another_size_are_interpolated(tmp_path: Path) -> None:
    parameters = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
    made = [
        Timm(
            name="swin_tiny_patch4_window7_224",
            parameters=parameters | {"window_size": window},
            embedding_dim=8,
        ).build(image_hw=(112, 112))
        for window in (7, 4)
    ]
    save_file(made[0].trunk.state_dict(), tmp_path / "a.safetensors")
    found = load_initial(made[1], tmp_path / "a.safetensors")
    assert found.other_shape == ()
    table = "trunk.layers.0.blocks.0.attn.relative_position_bias_table"
    assert f"{table} [169, 1] there, [49, 1] here" in found.resized
    assert made[1].resized(table, torch.zeros(169, 2)) is None


def test_the_last_norm_behind_an_average(tmp_path: Path) -> None:
    weights = weights_of(VIT)
    save_file(weights, tmp_path / "model.safetensors")
    parameters = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    config = Timm(name=VIT.timm, pool="avg", embedding_dim=8, parameters=parameters)
    network = config.build(image_hw=(64, 64))
    load_initial(network, tmp_path)
    assert torch.equal(network.trunk.fc_norm.weight, weights["vit.layernorm.weight"])
