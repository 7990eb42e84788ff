"""Weights to start from: each form of file, what matched, and that nothing in a file runs."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyfaces.configs.backbones.vit import VIT, ViTShape
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.init import load_initial
from manyfaces.models.backbones.iresnet import IResNet
from manyfaces.models.backbones.mobilefacenet import MobileFaceNet
from manyfaces.models.backbones.vit import ViT

HW = (36, 27)


@pytest.fixture(autouse=True)
def small_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT, "test", ViTShape(16, 3))
    monkeypatch.setitem(VIT, "wide", ViTShape(24, 3))


def made(network: type[nn.Module], seed: int, *arguments: Any) -> Any:
    """A network in which every weight and statistic has its own value, so that two that are
    exchanged are seen; without its own slower start."""
    with torch.device("meta"):
        built = network(*arguments, image_hw=HW)
    built.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in built.state_dict().items():
            if name.endswith("num_batches_tracked"):
                weight.fill_(seed)
            else:
                weight.copy_(torch.rand(weight.shape, generator=generator))
    return built


def iresnet(seed: int) -> Any:
    return made(IResNet, seed, 18, 8)


def mobilefacenet(seed: int) -> Any:
    return made(MobileFaceNet, seed, 1, 8)


def vit(seed: int) -> Any:
    return made(ViT, seed, "test", 8)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())


def insightface_name(ours: str) -> str:
    """InsightFace's name (`get_mbf`, `VisionTransformer`) for a weight of ours; iresnet has our
    names. Written by hand from `recognition/arcface_torch/backbones`."""
    stages = {2: "2", 7: "4", 14: "6"}
    lists = {3: "3.layers.0", 4: "3.layers.1", 5: "3.layers.2", 6: "3.layers.3"}
    lists |= {number: f"5.layers.{number - 8}" for number in range(8, 14)}
    lists |= {15: "7.layers.0", 16: "7.layers.1"}
    if found := re.fullmatch(r"layers\.(\d+)\.layers\.(\d)\.(.*)", ours):
        place = (stages | lists)[int(found[1])]
        return f"layers.{place}.layers.{found[2]}.layers.{found[3]}"
    if ours.startswith("layers.17."):
        return ours.replace("layers.17.", "conv_sep.layers.")
    if found := re.fullmatch(r"layers\.([01])\.(.*)", ours):
        return f"layers.{found[1]}.layers.{found[2]}"
    starts = {"pool.": "features.layers.0.layers.", "fc.": "features.layers.2."}
    starts |= {"features.": "features.layers.3."}
    for mine, theirs in starts.items():
        if ours.startswith(mine):
            return ours.replace(mine, theirs)
    return ours


def timm_name(ours: str) -> str:
    """The name that timm's and InsightFace's vision transformers have for a weight of ours."""
    name = ours.replace("patch_embed.", "patch_embed.proj.")
    name = name.replace(".qkv.", ".attn.qkv.").replace(".proj.", ".attn.proj.")
    name = name.replace("patch_embed.attn.proj.", "patch_embed.proj.")
    return name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.2.", ".mlp.fc2.")


def hugging_face(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a vision transformer as Hugging Face's `ViTModel` names and splits them."""
    theirs: dict[str, Tensor] = {}
    for name, weight in ours.items():
        name = name.replace("patch_embed.", "embeddings.patch_embeddings.projection.")
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("mask_token", "embeddings.mask_token")
        name = re.sub(r"^norm\.", "layernorm.", name)
        name = re.sub(r"^blocks\.", "encoder.layer.", name)
        name = name.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
        name = name.replace(".mlp.0.", ".intermediate.dense.").replace(".mlp.2.", ".output.dense.")
        name = re.sub(r"(layer\.\d+)\.proj\.", r"\1.attention.output.dense.", name)
        if ".qkv." not in name:
            theirs[f"vit.{name}"] = weight
            continue
        for word, part in zip(("query", "key", "value"), weight.chunk(3), strict=True):
            theirs[f"vit.{name.replace('.qkv.', f'.attention.attention.{word}.')}"] = part.clone()
    return theirs


@pytest.mark.parametrize("make", [iresnet, mobilefacenet, vit])
def test_a_file_of_ours(tmp_path: Path, make: Any) -> None:
    trained, fresh = make(1), make(2)
    save_file(trained.state_dict(), tmp_path / "backbone.safetensors")
    found = load_initial(fresh, tmp_path)
    assert same(fresh, trained)
    assert found.path == tmp_path / "backbone.safetensors"
    assert found.missing == found.unused == found.other_shape == ()
    assert found.num_weights == len(found.matched)
    assert [(what, number) for what, number, _ in found.rows()] == [
        ("matched", found.num_weights),
        ("missing in the file", 0),
        ("not used of the file", 0),
        ("of another shape", 0),
    ]


@pytest.mark.parametrize(
    ("make", "rename", "ending"),
    [
        (iresnet, str, ".pth"),
        (mobilefacenet, insightface_name, ".pt"),
        (vit, timm_name, ".bin"),
        (mobilefacenet, str, ".ckpt"),
    ],
)
def test_files_with_the_names_of_insightface(
    tmp_path: Path, make: Any, rename: Any, ending: str
) -> None:
    trained, fresh = make(1), make(2)
    theirs = {rename(name): weight for name, weight in trained.state_dict().items()}
    path = tmp_path / f"backbone{ending}"
    torch.save(theirs, path)
    found = load_initial(fresh, path)
    assert same(fresh, trained)
    assert found.missing == found.unused == found.other_shape == ()


def test_published_names_as_they_stand_in_insightfaces_files() -> None:
    """Some names in full, so that the functions above are not alone in saying them."""
    trained = mobilefacenet(1)
    theirs = {insightface_name(name) for name in trained.state_dict()}
    assert {
        "layers.0.layers.0.weight",
        "layers.1.layers.2.weight",
        "layers.2.layers.1.layers.1.running_mean",
        "layers.3.layers.3.layers.2.layers.0.weight",
        "layers.5.layers.5.layers.0.layers.2.weight",
        "layers.7.layers.1.layers.2.layers.1.bias",
        "conv_sep.layers.0.weight",
        "features.layers.0.layers.1.weight",
        "features.layers.2.weight",
        "features.layers.3.running_var",
    } <= theirs
    theirs = {timm_name(name) for name in vit(1).state_dict()}
    assert {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.1.attn.proj.bias",
        "blocks.2.mlp.fc1.weight",
        "blocks.2.mlp.fc2.bias",
        "norm.weight",
        "feature.3.running_mean",
    } <= theirs


def test_a_file_with_the_names_of_hugging_face(tmp_path: Path) -> None:
    trained, fresh = vit(1), vit(2)
    save_file(hugging_face(trained.state_dict()), tmp_path / "model.safetensors")
    found = load_initial(fresh, tmp_path)
    assert same(fresh, trained)
    assert found.missing == found.unused == found.other_shape == ()


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("module.", None),
        ("backbone.", "state_dict"),
        ("model.", "state_dict_backbone"),
        ("module.backbone.", "model"),
        ("_orig_mod.module.", "model_state_dict"),
    ],
)
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str, key: str | None) -> None:
    trained, fresh = mobilefacenet(1), mobilefacenet(2)
    weights = {prefix + name: weight for name, weight in trained.state_dict().items()}
    torch.save(weights if key is None else {"epoch": 3, key: weights}, tmp_path / "a.pt")
    load_initial(fresh, tmp_path / "a.pt")
    assert same(fresh, trained)


class Wrapped(nn.Module):
    """A network of one's own whose names begin with `model.`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 4)


def test_a_prefix_that_the_network_has_stays(tmp_path: Path) -> None:
    trained, fresh = Wrapped(), Wrapped()
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    assert load_initial(fresh, tmp_path / "a.safetensors").matched == (
        "model.weight",
        "model.bias",
    )
    assert same(fresh, trained)


def test_what_does_not_match_is_told_and_keeps_its_start(tmp_path: Path) -> None:
    trained, fresh = mobilefacenet(1), mobilefacenet(2)
    before = {name: weight.clone() for name, weight in fresh.state_dict().items()}
    weights = {
        name: weight.half()
        for name, weight in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    del weights["pool.1.bias"]
    weights["fc.weight"] = torch.zeros(8, 9)
    weights["head.weight"] = torch.zeros(3, 8)
    save_file(weights, tmp_path / "a.safetensors")
    found = load_initial(fresh, tmp_path / "a.safetensors")
    assert found.missing == ("pool.1.bias",)
    assert found.unused == ("head.weight",)
    assert found.other_shape == ("fc.weight [8, 9] there, [8, 512] here",)
    after = fresh.state_dict()
    assert torch.equal(after["fc.weight"], before["fc.weight"])
    assert torch.equal(after["pool.1.bias"], before["pool.1.bias"])
    assert torch.equal(after["layers.0.0.weight"], weights["layers.0.0.weight"].float())
    rows = {what: names for what, _, names in found.rows()}
    assert rows["matched"].startswith(
        "layers.0.0.weight, layers.0.1.weight, layers.0.1.bias, ... ("
    )
    assert "1 missing in the file, 1 not used of the file, 1 of another shape" in str(found)


def refusal(path: Path, network: nn.Module | None = None) -> str:
    """The one line of the refusal, after which the network is as it was."""
    network = network or mobilefacenet(2)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_initial(network, path)
    assert all(torch.equal(before[name], w) for name, w in network.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(vit(1).state_dict(), tmp_path / "a.safetensors")
    told = refusal(tmp_path / "a.safetensors")
    assert "only 0 of the network's 283 weights are in it" in told
    assert (
        "the network has layers.0.0.weight, layers.0.1.weight, layers.0.1.bias, ... (283 in all)"
        in told
    )
    assert re.search(r"the file has \S+, \S+, \S+, \.\.\. \(51 in all\)", told)
    assert told.endswith("or model.init=null")


def test_fewer_than_half_of_the_weights_are_refused(tmp_path: Path) -> None:
    weights = mobilefacenet(1).state_dict()
    names = [name for name in weights if not name.endswith("num_batches_tracked")]
    for kept, accepted in ((141, False), (142, True)):
        save_file({name: weights[name] for name in names[:kept]}, tmp_path / "a.safetensors")
        if accepted:
            assert len(load_initial(mobilefacenet(2), tmp_path / "a.safetensors").matched) == 142
        else:
            assert "only 141 of the network's 283" in refusal(tmp_path / "a.safetensors")


def test_weights_of_another_size_are_refused_with_the_shapes(tmp_path: Path) -> None:
    save_file(made(ViT, 1, "wide", 8).state_dict(), tmp_path / "a.safetensors")
    told = refusal(tmp_path / "a.safetensors", vit(2))
    assert "of another shape are pos_embed [1, 12, 24] there, [1, 12, 16] here, " in told


def test_two_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    weights = mobilefacenet(1).state_dict()
    both = {f"{p}{name}": w.clone() for p in ("model.", "backbone.") for name, w in weights.items()}
    save_file(both, tmp_path / "a.safetensors")
    assert "twice, as " in refusal(tmp_path / "a.safetensors")


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("ending", [".pth", ".ckpt"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, with_torch: bool, ending: str) -> None:
    harm, path = tmp_path / "harm", tmp_path / f"a{ending}"
    value = {"conv1.weight": torch.zeros(1), "x": Malicious(harm)}
    if with_torch:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    told = refusal(path)
    assert not harm.exists()
    if with_torch:
        assert re.search(r"holds \S+ besides tensors, which could run code", told)
    torch.load(path, weights_only=False) if with_torch else pickle.loads(path.read_bytes())
    assert harm.exists(), "the file of this test is not malicious"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pth", b"not a file of torch", "use an intact copy"),
        ("a.pth", b"", "use an intact copy"),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}", "use an intact copy"),
        ("a.safetensors", b"", "use an intact copy"),
        ("a.onnx", b"x", "expected a file that ends in .safetensors, .pth, .pt, .bin or .ckpt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert told in refusal(tmp_path / name)


def test_half_a_file_cannot_be_read(tmp_path: Path) -> None:
    for name, save in (("a.pth", torch.save), ("a.safetensors", save_file)):
        path = tmp_path / name
        save(mobilefacenet(1).state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "use an intact copy" in refusal(path)


@pytest.mark.parametrize("value", [[torch.zeros(2)], {"epoch": 3}, {"state_dict": {"lr": 0.1}}, 7])
def test_files_without_weights_by_name(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    assert "holds no weights by name" in refusal(tmp_path / "a.pth")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file; every worker must see it" in refusal(tmp_path / "a.pth")
    told = refusal(tmp_path)
    assert (
        "expected backbone.safetensors, model.safetensors, pytorch_model.bin, model.pt or " in told
    )
