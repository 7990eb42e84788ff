"""Weights that others have published: which network they are of is found, and embeddings are those
of the peer's own code, written here from its architecture."""

import argparse
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.configs.backbones.iresnet import IRESNET_BLOCKS, IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import VIT, ViT, ViTShape
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones import published
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.init import load_initial
from manyfaces.models.backbones.published import open_published
from manyfaces.train.evaluation.encoders import open_encoder, parse_backbone

CPU, DIM = torch.device("cpu"), 512
PX, LAST_PX = 56, 4
"""Side of the images and of the last map, half of 112 and 7: four times faster."""
BLOCKS = (1, 2, 1, 1)
IMAGES_NHWC = torch.randint(0, 256, (2, PX, PX, 3), generator=torch.Generator().manual_seed(3)).to(
    torch.uint8
)
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published shapes with few blocks; what is tested is how they are joined."""
    monkeypatch.setitem(IRESNET_BLOCKS, 18, BLOCKS)
    monkeypatch.setitem(VIT, "small_p8", ViTShape(32, 2, heads=4, patch_px=8, mlp_ratio=5))
    monkeypatch.setitem(VIT, "tiny", ViTShape(32, 2))
    known = (IResNet(depth=18), MobileFaceNet(scale=1), ViT(size="tiny"), ViT(size="small_p8"))
    monkeypatch.setattr(published, "_known", lambda: iter(known))
    monkeypatch.setattr(published, "IMAGE_HW", (PX, PX))


def values(names_and_shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights of ordinary size, each with its own values: variances and slopes above zero."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name, shape in names_and_shapes.items():
        if name.endswith("running_var"):
            made[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            made[name] = torch.randn(shape, generator=generator) / fan_in**0.5
        else:
            made[name] = torch.randn(shape, generator=generator) * 0.3 + 0.5
    return made


def norm_shapes(name: str, width: int, affine: bool = True) -> dict[str, tuple[int, ...]]:
    parts = ["running_mean", "running_var", *(["weight", "bias"] if affine else [])]
    return {f"{name}.{part}": (width,) for part in parts}


def norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """BatchNorm in evaluation mode, from its definition."""
    shape = [1, -1] + [1] * (x.ndim - 2)

    def part(word: str, otherwise: float) -> Tensor:
        value = state.get(f"{name}.{word}", torch.full((x.shape[1],), otherwise))
        return value.view(shape).to(x.dtype)

    unit = (x - part("running_mean", 0)) / (part("running_var", 1) + eps).sqrt()
    return unit * part("weight", 1) + part("bias", 0)


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope.view(1, -1, 1, 1))


def unit_images(bgr: bool = False) -> Tensor:
    """Pixels as all of these programs make their input of them: [-1, 1]."""
    images = (IMAGES_NHWC.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    return images.flip(1) if bgr else images


def double(state: State) -> State:
    return {name: weight.double() for name, weight in state.items()}


# AdaFace's and CVLface's `Backbone` (net.py; models/iresnet/model.py), mode "ir".


def adaface_units() -> list[tuple[int, int, int]]:
    """Width before, width behind and stride of each block."""
    units, before = [], 64
    for width, number in zip((64, 128, 256, 512), BLOCKS, strict=True):
        for block in range(number):
            units.append((before, width, 1 if block else 2))
            before = width
    return units


def adaface_state() -> State:
    shapes: dict[str, tuple[int, ...]] = {"input_layer.0.weight": (64, 3, 3, 3)}
    shapes |= norm_shapes("input_layer.1", 64) | {"input_layer.2.weight": (64,)}
    for number, (before, width, _) in enumerate(adaface_units()):
        body = f"body.{number}."
        if before != width:
            shapes[f"{body}shortcut_layer.0.weight"] = (width, before, 1, 1)
            shapes |= norm_shapes(f"{body}shortcut_layer.1", width)
        shapes |= norm_shapes(f"{body}res_layer.0", before)
        shapes[f"{body}res_layer.1.weight"] = (width, before, 3, 3)
        shapes |= norm_shapes(f"{body}res_layer.2", width)
        shapes[f"{body}res_layer.3.weight"] = (width,)
        shapes[f"{body}res_layer.4.weight"] = (width, width, 3, 3)
        shapes |= norm_shapes(f"{body}res_layer.5", width)
    shapes |= norm_shapes("output_layer.0", 512)
    shapes |= {"output_layer.3.weight": (DIM, 512 * LAST_PX**2), "output_layer.3.bias": (DIM,)}
    return values(shapes | norm_shapes("output_layer.4", DIM, affine=False))


def adaface_embeddings(state: State, x: Tensor) -> Tensor:
    s = double(state)
    x = F.conv2d(x, s["input_layer.0.weight"], padding=1)
    x = prelu(norm(s, "input_layer.1", x), s["input_layer.2.weight"])
    for number, (before, width, stride) in enumerate(adaface_units()):
        body = f"body.{number}."
        if before == width:
            short = F.max_pool2d(x, 1, stride)
        else:
            short = F.conv2d(x, s[f"{body}shortcut_layer.0.weight"], stride=stride)
            short = norm(s, f"{body}shortcut_layer.1", short)
        y = F.conv2d(norm(s, f"{body}res_layer.0", x), s[f"{body}res_layer.1.weight"], padding=1)
        y = prelu(norm(s, f"{body}res_layer.2", y), s[f"{body}res_layer.3.weight"])
        y = F.conv2d(y, s[f"{body}res_layer.4.weight"], stride=stride, padding=1)
        x = norm(s, f"{body}res_layer.5", y) + short
    x = norm(s, "output_layer.0", x).flatten(1)
    x = x @ s["output_layer.3.weight"].T + s["output_layer.3.bias"]
    x = norm(s, "output_layer.4", x)
    return x / x.norm(dim=1, keepdim=True)


# InsightFace's and CVLface's `VisionTransformer` (arcface_torch/backbones/vit.py).


def vit_state(width: int, depth: int, patch: int, ratio: int) -> State:
    tokens = (PX // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        at = f"blocks.{block}."
        shapes |= {f"{at}{n}.{p}": (width,) for n in ("norm1", "norm2") for p in ("weight", "bias")}
        shapes[f"{at}attn.qkv.weight"] = (3 * width, width)
        shapes |= {f"{at}attn.proj.weight": (width, width), f"{at}attn.proj.bias": (width,)}
        shapes |= {f"{at}mlp.fc1.weight": (ratio * width, width)}
        shapes |= {f"{at}mlp.fc1.bias": (ratio * width,)}
        shapes |= {f"{at}mlp.fc2.weight": (width, ratio * width), f"{at}mlp.fc2.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"feature.0.weight": (width, tokens * width), "feature.2.weight": (DIM, width)}
    return values(shapes | norm_shapes("feature.1", width) | norm_shapes("feature.3", DIM))


def vit_embeddings(state: State, x: Tensor, heads: int, patch: int) -> Tensor:
    s = double(state)
    x = F.conv2d(x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + s["pos_embed"]
    n, tokens, width = x.shape
    for block in range(max(int(k.split(".")[1]) for k in s if k.startswith("blocks.")) + 1):
        at = f"blocks.{block}."
        qkv = layer_norm(s, f"{at}norm1", x) @ s[f"{at}attn.qkv.weight"].T
        q, k, v = qkv.reshape(n, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(n, tokens, width)
        x = x + y @ s[f"{at}attn.proj.weight"].T + s[f"{at}attn.proj.bias"]
        y = layer_norm(s, f"{at}norm2", x) @ s[f"{at}mlp.fc1.weight"].T + s[f"{at}mlp.fc1.bias"]
        x = x + y.clamp(0, 6) @ s[f"{at}mlp.fc2.weight"].T + s[f"{at}mlp.fc2.bias"]
    x = layer_norm(s, "norm", x).reshape(n, -1) @ s["feature.0.weight"].T
    x = norm(s, "feature.1", x, 2e-5) @ s["feature.2.weight"].T
    return norm(s, "feature.3", x, 2e-5)


# InsightFace's `IResNet` and `MobileFaceNet` (arcface_torch/backbones).


def iresnet_state() -> State:
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    shapes |= norm_shapes("bn1", 64)
    before = 64
    for layer, (width, number) in enumerate(zip((64, 128, 256, 512), BLOCKS, strict=True), 1):
        for block in range(number):
            at = f"layer{layer}.{block}."
            shapes |= norm_shapes(f"{at}bn1", before) | norm_shapes(f"{at}bn2", width)
            shapes |= norm_shapes(f"{at}bn3", width) | {f"{at}prelu.weight": (width,)}
            shapes[f"{at}conv1.weight"] = (width, before, 3, 3)
            shapes[f"{at}conv2.weight"] = (width, width, 3, 3)
            if block == 0:
                shapes[f"{at}downsample.0.weight"] = (width, before, 1, 1)
                shapes |= norm_shapes(f"{at}downsample.1", width)
            before = width
    shapes |= norm_shapes("bn2", 512) | norm_shapes("features", DIM)
    return values(shapes | {"fc.weight": (DIM, 512 * LAST_PX**2), "fc.bias": (DIM,)})


def iresnet_embeddings(state: State, x: Tensor) -> Tensor:
    s = double(state)
    x = prelu(norm(s, "bn1", F.conv2d(x, s["conv1.weight"], padding=1)), s["prelu.weight"])
    for layer, number in enumerate(BLOCKS, 1):
        for block in range(number):
            at, stride = f"layer{layer}.{block}.", 1 if block else 2
            y = F.conv2d(norm(s, f"{at}bn1", x), s[f"{at}conv1.weight"], padding=1)
            y = prelu(norm(s, f"{at}bn2", y), s[f"{at}prelu.weight"])
            y = norm(s, f"{at}bn3", F.conv2d(y, s[f"{at}conv2.weight"], stride=stride, padding=1))
            if block == 0:
                x = F.conv2d(x, s[f"{at}downsample.0.weight"], stride=stride)
                x = norm(s, f"{at}downsample.1", x)
            x = x + y
    x = norm(s, "bn2", x).flatten(1) @ s["fc.weight"].T + s["fc.bias"]
    return norm(s, "features", x)


class MBF:
    """`get_mbf` with scale 1: the names of its weights and what it computes, from one list."""

    def __init__(self) -> None:
        # name, width before, width behind, kernel, stride, padding, groups, whether a PReLU follows
        self.layers: list[tuple[str, int, int, int, int, int, int, bool]] = []
        self.added: dict[str, str] = {}
        """First and last layer of each block that is added to its input."""
        self.add("layers.0.layers.", 3, 64, 3, 2, 1)
        self.add("layers.1.layers.", 64, 64, 3, 1, 1, 64)
        self.block("layers.2.", 64, 64, 128, 2)
        for block in range(4):
            self.block(f"layers.3.layers.{block}.", 64, 64, 128, 1)
        self.block("layers.4.", 64, 128, 256, 2)
        for block in range(6):
            self.block(f"layers.5.layers.{block}.", 128, 128, 256, 1)
        self.block("layers.6.", 128, 128, 512, 2)
        for block in range(2):
            self.block(f"layers.7.layers.{block}.", 128, 128, 256, 1)
        self.add("conv_sep.layers.", 128, 512, 1, 1, 0)
        self.add("features.layers.0.layers.", 512, 512, LAST_PX, 1, 0, 512, False)

    def add(
        self, name: str, before: int, width: int, kernel: int, stride: int, padding: int,
        groups: int = 1, has_prelu: bool = True,
    ) -> None:  # fmt: skip
        self.layers.append((name, before, width, kernel, stride, padding, groups, has_prelu))

    def block(self, name: str, before: int, width: int, groups: int, stride: int) -> None:
        inner = f"{name}layers."
        self.add(f"{inner}0.layers.", before, groups, 1, 1, 0)
        self.add(f"{inner}1.layers.", groups, groups, 3, stride, 1, groups)
        self.add(f"{inner}2.layers.", groups, width, 1, 1, 0, 1, False)
        if stride == 1:
            self.added[f"{inner}0.layers."] = f"{inner}2.layers."

    def state(self) -> State:
        shapes: dict[str, tuple[int, ...]] = {"features.layers.2.weight": (DIM, 512)}
        for name, before, width, kernel, _, _, groups, has_prelu in self.layers:
            shapes[f"{name}0.weight"] = (width, before // groups, kernel, kernel)
            shapes |= norm_shapes(f"{name}1", width)
            shapes |= {f"{name}2.weight": (width,)} if has_prelu else {}
        return values(shapes | norm_shapes("features.layers.3", DIM))

    def embeddings(self, state: State, x: Tensor) -> Tensor:
        s, kept, ends = double(state), x, {end: begin for begin, end in self.added.items()}
        for name, _, _, _, stride, padding, groups, has_prelu in self.layers:
            if name in self.added:
                kept = x
            x = F.conv2d(x, s[f"{name}0.weight"], None, stride, padding, groups=groups)
            x = norm(s, f"{name}1", x)
            x = prelu(x, s[f"{name}2.weight"]) if has_prelu else x
            x = x + kept if name in ends else x
        return norm(s, "features.layers.3", x.flatten(1) @ s["features.layers.2.weight"].T)


def close(encoder: Encoder, expected_ND: Tensor) -> None:
    """Equal embeddings: within the rounding of float32."""
    found_ND = encoder.embed(IMAGES_NHWC).double()
    cosines = F.cosine_similarity(found_ND, expected_ND)
    assert float(cosines.min()) > 1 - 1e-9
    assert not torch.allclose(expected_ND[0], expected_ND[1], rtol=1e-2)
    if not torch.allclose(expected_ND.norm(dim=1), torch.ones(2).double()):
        torch.testing.assert_close(found_ND, expected_ND, rtol=1e-4, atol=1e-4)


def test_insightfaces_files_are_recognised_and_give_its_embeddings(tmp_path: Path) -> None:
    iresnet, mbf = iresnet_state(), MBF()
    torch.save(iresnet, tmp_path / "backbone.pth")
    encoder = open_published(tmp_path / "backbone.pth", CPU)
    assert encoder.model == IResNet(depth=18)
    close(encoder, iresnet_embeddings(iresnet, unit_images()))

    state = mbf.state()
    torch.save({"epoch": 3, "state_dict_backbone": {f"module.{k}": v for k, v in state.items()}},
               tmp_path / "checkpoint_gpu_0.pt")  # fmt: skip
    encoder = open_published(tmp_path / "checkpoint_gpu_0.pt", CPU)
    assert encoder.model == MobileFaceNet(scale=1)
    close(encoder, mbf.embeddings(state, unit_images()))

    state = vit_state(32, 2, 9, 4) | {"mask_token": torch.ones(1, 1, 32)}
    save_file(state, tmp_path / "vit.safetensors")
    encoder = open_published(tmp_path / "vit.safetensors", CPU)
    assert encoder.model == ViT(size="tiny")
    close(encoder, vit_embeddings(state, unit_images(), heads=8, patch=9))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type[Any]]:
    """Makes classes that belong to modules which are gone again when a file is read."""

    def make(name: str) -> type[Any]:
        module, _, last = name.rpartition(".")
        kind = type(last, (dict,) if last.endswith("ict") else (), {"__module__": module})
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        setattr(sys.modules[module], last, kind)
        return kind

    return make


def adaface_file(path: Path, state: State, programs: Callable[[str], type[Any]]) -> None:
    """A checkpoint of AdaFace's: Lightning's, with the objects that it keeps beside the weights."""
    settings = programs("pytorch_lightning.utilities.parsing.AttributeDict")(arch="ir_18")
    callback = programs("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    namespace = argparse.Namespace(lr=0.1)
    torch.save(
        {
            "pytorch-lightning_version": "1.4.4",
            "callbacks": {callback: {"best_model_score": torch.tensor(0.9)}},
            "hyper_parameters": settings,
            "args": namespace,
            "state_dict": {
                **{f"model.{name}": weight for name, weight in state.items()},
                "head.kernel": torch.rand(DIM, 7),
                "head.t": torch.zeros(1),
            },
        },
        path,
    )


def test_adafaces_checkpoint_gives_its_embeddings_for_bgr(
    tmp_path: Path, programs: Callable[[str], type[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, path = adaface_state(), tmp_path / "adaface_ir18_webface4m.ckpt"
    adaface_file(path, state, programs)
    for name in [each for each in sys.modules if each.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    encoder = open_published(path, CPU)
    assert encoder.model == IResNet(depth=18)
    close(encoder, adaface_embeddings(state, unit_images(bgr=True)))
    # The same weights start a run, with the head left alone.
    network = IResNet(depth=18).build(image_hw=(PX, PX))
    found = load_initial(network, path)
    assert (found.missing, found.other_shape) == ((), ())
    assert found.unused == ("head.kernel", "head.t")
    assert torch.equal(network.conv1.weight, encoder.backbone.get_parameter("conv1.weight"))


@pytest.mark.parametrize(("space", "is_of_hub"), [("RGB", False), ("BGR", False), ("BGR", True)])
def test_cvlfaces_folders_give_its_embeddings(tmp_path: Path, space: str, is_of_hub: bool) -> None:
    state, settings = adaface_state(), {"name": "ir18", "color_space": space, "output_dim": DIM}
    if is_of_hub:
        named = {f"model.net.{name}": weight for name, weight in state.items()}
        save_file(named, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"conf": settings}))
    else:
        torch.save({f"net.{name}": weight for name, weight in state.items()}, tmp_path / "model.pt")
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(settings))
    encoder = open_encoder(tmp_path, CPU)
    close(encoder, adaface_embeddings(state, unit_images(bgr=space == "BGR")))


def test_cvlfaces_transformer_gives_its_embeddings(tmp_path: Path) -> None:
    state = vit_state(32, 2, 8, 5)
    torch.save({f"net.{name}": weight for name, weight in state.items()}, tmp_path / "model.pt")
    encoder = open_encoder(tmp_path, CPU)
    assert encoder.model == ViT(size="small_p8")
    close(encoder, vit_embeddings(state, unit_images(), heads=4, patch=8))


def test_channels_and_the_network_can_be_told(tmp_path: Path) -> None:
    state = adaface_state()
    save_file(state, tmp_path / "stripped.safetensors")
    told = open_published(tmp_path / "stripped.safetensors", CPU, IResNet(depth=18), "bgr")
    close(told, adaface_embeddings(state, unit_images(bgr=True)))
    unsaid = open_published(tmp_path / "stripped.safetensors", CPU)
    close(unsaid, adaface_embeddings(state, unit_images()))


def test_the_published_shapes_are_those_of_the_kinds() -> None:
    known = {str(kind.word()): kind.published() for kind in Backbone.kinds()}
    assert [each.depth for each in known["iresnet"]] == [18, 34, 50, 100, 200]
    assert [each.scale for each in known["mobilefacenet"]] == [1, 2, 4]
    sizes = [each.size for each in known["vit"]]
    assert sizes == ["tiny", "small", "base", "large", "huge", "small_p8", "base_p8"]
    assert known["timm"] == known["custom"] == ()


def refused(file: Path, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_published(file, CPU, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    state, file = iresnet_state(), tmp_path / "a.safetensors"
    save_file({k: v for k, v in state.items() if k != "fc.bias"}, file)
    assert "does not say which network its 110 weights" in refused(file)
    assert "fc.bias is not in it" in refused(file, IResNet(depth=18))
    save_file(state | {"fc.bias": torch.zeros(3)}, file)
    assert "fc.bias is [3] in it, and [512] in the network" in refused(file, IResNet(depth=18))
    # Squeeze and excitation, as AdaFace's ir_se_50 has it, would be left out silently.
    save_file(adaface_state() | {"body.0.res_layer.se_block.fc1.weight": torch.zeros(4, 64)}, file)
    assert "which the network has not" in refused(file, IResNet(depth=18))
    assert "no network that is known fits them" in refused(file)


def test_a_network_in_words() -> None:
    assert parse_backbone("{kind: iresnet, depth: 100}") == IResNet(depth=100)
    assert parse_backbone("mobilefacenet") == MobileFaceNet()
    assert parse_backbone({"kind": "vit", "size": "small"}) == ViT(size="small")
    assert parse_backbone(None) is None
    for wrong in ("{kind: iresnet, depth: 7}", "{kind: other}", "{kind: ", "3"):
        with pytest.raises(UserError, match="give a network such as") as caught:
            parse_backbone(wrong)
        assert "\n" not in str(caught.value)


def test_what_says_itself_what_it_is_takes_no_other(tmp_path: Path) -> None:
    from manyfaces.train.evaluation.exported import write_exported

    network: nn.Module = ViT(size="tiny").build(image_hw=(PX, PX))
    encoder = Encoder(network, ViT(size="tiny"), (PX, PX), CPU, autocast=False)
    write_exported(encoder, tmp_path / "a.safetensors", "a test")
    with pytest.raises(UserError, match="says itself which network it is"):
        open_encoder(tmp_path / "a.safetensors", CPU, ViT(size="tiny"))
