"""LoRA: the algebra exactly, what is trained and what stays, and what it cannot act on."""

import copy
import math
import unittest.mock
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from manyfaces.configs.adapters.lora import LoRA
from manyfaces.configs.backbones.backbone import Backbone as Settings
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.timm import Timm
from manyfaces.configs.backbones.vit import ViT
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config, Data
from manyfaces.models.adapters.adapter import adapt, base, merge, weights_sha256
from manyfaces.models.adapters.lora import LoRALinear
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.timm import TimmBackbone
from manyfaces.train.checkpoint.network import build_backbone

PX = (28, 28)
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 14}
SETTINGS = {
    "vit": ViT(size="tiny", embedding_dim=8, drop_path=0, mask_ratio=0),
    "timm": Timm(name="vit_tiny_patch16_224", embedding_dim=8, parameters=SMALL),
}


def network(settings: Settings) -> Backbone:
    torch.manual_seed(0)
    built: Backbone = settings.build(image_hw=PX)
    return built


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, *PX, generator=torch.Generator().manual_seed(1))


def main(backbone: nn.Module) -> Tensor:
    output = backbone(images())
    assert isinstance(output, Output)
    return output.embeddings["main"]


def randomise(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, LoRALinear):
            for parameter in module.adapter_parameters():
                nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_starts_at_the_base_and_merges(name: str) -> None:
    plain = network(SETTINGS[name])
    names = set(plain.state_dict())
    adapted = copy.deepcopy(plain)
    adapt(adapted, [LoRA(rank=3, targets=("q", "v", "*mlp*"), dropout=0.5)], PX)
    assert names < set(adapted.state_dict())
    for each in (plain, adapted):
        each.eval()
    with torch.no_grad():
        assert torch.equal(main(adapted), main(plain))
        randomise(adapted)
        unmerged = main(adapted)
        assert not torch.allclose(unmerged, main(plain), atol=1e-2)
        merged = copy.deepcopy(adapted)
        merge(merged)
        assert set(merged.state_dict()) == names
        torch.testing.assert_close(main(merged), unmerged, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())


@pytest.mark.parametrize(("stabilised", "scale"), [(True, 8 / math.sqrt(2)), (False, 4.0)])
def test_a_fused_layer_changes_queries_and_values_alone(stabilised: bool, scale: float) -> None:
    backbone = network(SETTINGS["vit"])
    weight = backbone.blocks[0].qkv.weight.detach().clone()  # type: ignore[index, union-attr]
    adapt(backbone, [LoRA(rank=2, alpha=8, rank_stabilised=stabilised)], PX)
    randomise(backbone)
    layer = backbone.blocks[0].qkv  # type: ignore[index, union-attr]
    assert isinstance(layer, LoRALinear)
    width = layer.in_features
    whole = weight.double().clone()
    for place, word in ((0, "q"), (2, "v")):
        change = layer.lora_b[word].detach().double() @ layer.lora_a[word].detach().double()
        whole[place * width : (place + 1) * width] += scale * change
    x = torch.randn(5, 7, width)
    expected = x.double() @ whole.T
    torch.testing.assert_close(layer.eval()(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole[width : 2 * width], weight.double()[width : 2 * width])


def test_only_adapters_and_the_embedding_layer_are_trained() -> None:
    backbone = network(SETTINGS["timm"])
    adapt(backbone, [LoRA(rank=2)], PX)
    fixed = {name: p.detach().clone() for name, p in base(backbone).items()}
    digest = weights_sha256(base(backbone))
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in backbone.named_parameters()} - fixed.keys()
    assert {name.partition(".")[0] for name in trained} == {"trunk", "feature"}
    assert all("lora_" in name for name in trained if name.startswith("trunk"))
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], 0.1)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    for _ in range(2):  # of the first, no gradient reaches A, as B is zero
        optimizer.zero_grad()
        main(backbone.train()).square().sum().backward()
        optimizer.step()
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in fixed), name
    assert weights_sha256(base(backbone)) == digest
    with torch.no_grad():
        next(iter(base(backbone).values())).view(-1)[0] += 1
    assert weights_sha256(base(backbone)) != digest


@pytest.mark.parametrize("name", SETTINGS)
def test_the_plan_knows_about_what_is_trained(name: str) -> None:
    lora = LoRA(rank=2, targets=("q", "v", "*mlp*"))
    settings = SETTINGS[name].model_copy(update={"adapters": (lora,)})
    backbone = network(settings)
    adapt(backbone, settings.adapters, PX)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    both = lora.num_parameters(1, 1) - LoRA(rank=2).num_parameters(1, 1)
    assert both == 2 * 5  # one pattern, for two layers here
    _, width, embedding = settings.transformer(PX)
    assert trained - embedding == len(backbone.list_blocks()) * 2 * width * (4 + 2 * 5)
    assert settings.trained_parameters(PX) < settings.cost(PX).parameters
    plain = SETTINGS[name]
    assert plain.trained_parameters(PX) == plain.cost(PX).parameters


def test_a_base_is_told_by_its_file_and_not_by_what_was_interpolated(tmp_path: Path) -> None:
    """Interpolated bits depend on the machine and on its threads."""
    trunk = network(SETTINGS["timm"]).trunk
    assert isinstance(trunk, nn.Module)
    file = tmp_path / "base.safetensors"
    save_file(trunk.state_dict(), file)
    model = SETTINGS["timm"].model_copy(update={"init": str(file), "adapters": (LoRA(rank=2),)})
    config = Config(model=model, data=Data(path="faces", image_px=42))  # 9 positions of 4
    digests = set()
    for noise in (0.0, 1e-7):
        with unittest.mock.patch.object(
            TimmBackbone,
            "resized",
            lambda self, name, weight, noise=noise: torch.full_like(
                self.state_dict()[name], 1 + noise
            ),
        ):
            built = build_backbone(config, fresh=True)
        assert built.matched is not None
        assert built.matched.resized
        digests.add(built.base_sha256)
    assert len(digests) == 1
    assert None not in digests


def test_dropout_hides_inputs_from_the_product_in_training_alone() -> None:
    layer = LoRALinear(nn.Linear(50, 4), {"whole": slice(None)}, 2, 1.0, dropout=0.5)
    nn.init.normal_(layer.lora_b["whole"])
    x = torch.randn(3, 50)
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.allclose(layer.train()(x), layer(x))


class Uncalled(Backbone):
    """Computes by a layer's weight alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(3, 3)

    def forward(self, images_NCHW: Tensor) -> Output:
        features = nn.functional.linear(images_NCHW.mean((2, 3)), self.q.weight)
        return Output({"main": features})


def test_what_it_cannot_act_on_is_told() -> None:
    with pytest.raises(UserError, match=r"'\*.nothing' fits none of the network's \d+ linear"):
        adapt(network(SETTINGS["timm"]), [LoRA(targets=("q", "*.nothing"))], PX)
    with pytest.raises(UserError, match=r"mean trunk\.blocks\.0\.attn\.qkv twice"):
        adapt(network(SETTINGS["timm"]), [LoRA(targets=("q", "*.qkv"))], PX)
    with pytest.raises(UserError, match=r"two of them change the layer"):
        adapt(network(SETTINGS["timm"]), [LoRA(), LoRA(targets=("k",))], PX)
    with pytest.raises(UserError, match=r"has BatchNorm \(\S+\), whose statistics"):
        adapt(network(MobileFaceNet(embedding_dim=8)), [LoRA()], PX)
    with pytest.raises(UserError, match=r"uses the weights of q without calling"):
        adapt(Uncalled(), [LoRA(targets=("q",))], PX)
