"""What all backbones have: an output with names, blocks, depths, any height and width; and
backbones of one's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from manyfaces.configs.backbones.backbone import Backbone as BackboneConfig
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import ViT
from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import identity, tensors
from manyfaces.configs.load import dump, load
from manyfaces.configs.schema import Config
from manyfaces.models.backbones.activation_checkpoint import checkpoint_activations
from manyfaces.models.backbones.backbone import Backbone, blocks_of
from manyfaces.models.backbones.output import Output, as_output
from manyfaces.models.backbones.pixels import to_input

SMALL = [
    (IResNet(depth=18, embedding_dim=8), 8),
    (MobileFaceNet(scale=1, embedding_dim=8), 15),
    (ViT(size="tiny", embedding_dim=8), 12),
]


@pytest.mark.parametrize(("config", "num_blocks"), SMALL, ids=["iresnet", "mobilefacenet", "vit"])
def test_depths_grow_from_the_image_to_the_embedding(
    config: BackboneConfig, num_blocks: int
) -> None:
    network = config.build(image_hw=(36, 27))
    assert len(network.list_blocks()) == num_blocks
    assert network.num_depths == num_blocks + 2
    depths = network.depths()
    assert depths.keys() == dict(network.named_parameters()).keys()
    assert sorted(set(depths.values())) == list(range(num_blocks + 2))
    assert list(depths.values()) == sorted(depths.values())
    for number, block in enumerate(network.list_blocks(), start=1):
        own = {id(parameter) for parameter in block.parameters()}
        inside = [name for name, p in network.named_parameters() if id(p) in own]
        assert {depths[name] for name in inside} == {number}


@pytest.mark.parametrize(
    ("config", "first", "last"),
    [
        (SMALL[0][0], ["conv1.weight", "prelu.weight"], ["bn2.weight", "fc.weight"]),
        (SMALL[1][0], ["layers.0.0.weight", "layers.1.0.weight"], ["pool.0.weight", "fc.weight"]),
        (SMALL[2][0], ["pos_embed", "mask_token", "patch_embed.bias"], ["norm.weight"]),
    ],
    ids=["iresnet", "mobilefacenet", "vit"],
)
def test_what_stands_before_and_behind_the_blocks(
    config: BackboneConfig, first: list[str], last: list[str]
) -> None:
    network = config.build(image_hw=(36, 27))
    assert {network.depths()[name] for name in first} == {0}
    assert {network.depths()[name] for name in last} == {network.num_depths - 1}


@pytest.mark.parametrize("config", [config for config, _ in SMALL], ids=lambda c: str(c.word()))
def test_images_that_are_not_square(config: BackboneConfig) -> None:
    network = config.build(image_hw=(36, 63)).eval()
    output = network(torch.randn(2, 3, 36, 63))
    assert output.embeddings.keys() == {"main"}
    assert output.embeddings["main"].shape == (2, 8)


@pytest.mark.parametrize("config", [config for config, _ in SMALL], ids=lambda c: str(c.word()))
@pytest.mark.parametrize(("neck", "layer"), [("layernorm", nn.LayerNorm), ("none", nn.Identity)])
def test_another_neck_takes_the_place_of_every_batchnorm_of_the_embedding(
    config: BackboneConfig, neck: str, layer: type[nn.Module]
) -> None:
    network = config.model_copy(update={"neck": neck}).build(image_hw=(36, 27))
    last = [part for top in network.embedding_layers() for part in top.modules()]
    assert not any(isinstance(part, nn.BatchNorm1d) for part in network.modules())
    assert sum(isinstance(part, layer) for part in last) == (2 if config.word() == "vit" else 1)
    assert network(torch.randn(2, 3, 36, 27)).embeddings["main"].shape == (2, 8)


@pytest.mark.parametrize("neck", ["layernorm", "none"])
def test_a_vit_with_another_neck_looks_at_each_image_alone(neck: str) -> None:
    torch.manual_seed(0)
    config = ViT(size="tiny", embedding_dim=8, drop_path=0, mask_ratio=0, neck=neck)
    network, images = config.build(image_hw=(36, 27)).train(), torch.randn(3, 3, 36, 27)
    together = network(images).embeddings["main"]
    alone = network(images[:1]).embeddings["main"]
    assert torch.allclose(alone, together[:1], rtol=1e-4, atol=1e-6)


def test_a_vit_returns_its_tokens_in_training_too() -> None:
    network = ViT(size="tiny", embedding_dim=8, mask_ratio=0.5).build(image_hw=(36, 27)).train()
    output = network(torch.randn(2, 3, 36, 27))
    assert output.tokens_NTD is not None
    assert output.tokens_NTD.shape == (2, 12, 256)


def test_blocks_within_another_network_are_found_once() -> None:
    inner = MobileFaceNet(scale=1, embedding_dim=8).build(image_hw=(32, 32))
    outer = nn.ModuleDict({"backbone": inner, "again": inner, "projector": nn.Linear(8, 8)})
    assert len(blocks_of(outer)) == 15
    assert blocks_of(nn.Linear(2, 2)) == []


class Chain(Backbone):
    """Two blocks of one weight each, and weights around and between them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(1, 1, bias=False)
        self.first = nn.Linear(1, 1, bias=False)
        self.between = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)
        self.behind = nn.Linear(1, 1, bias=False)

    def list_blocks(self) -> list[nn.Module]:
        return [self.first, self.second]


def test_what_stands_between_two_blocks_counts_with_the_first() -> None:
    assert list(Chain().depths().values()) == [0, 1, 1, 2, 3]


def test_an_output_of_any_network() -> None:
    tensor = torch.ones(2, 3)
    assert as_output(tensor) == Output({"main": tensor})
    output = Output({"main": tensor, "other": tensor}, tensor)
    assert as_output(output) is output
    with pytest.raises(UserError, match=r"returned a tuple; return .* tensor \[N, D\], or"):
        as_output((tensor, tensor))
    with pytest.raises(UserError, match=r"returned the embeddings global, part; one .* main"):
        as_output(Output({"global": tensor, "part": tensor}))


CUSTOM = """
from torch import nn
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.output import Output

class Small(nn.Module):
    def __init__(self, width, embedding_dim, image_hw):
        super().__init__()
        pixels = 3 * image_hw[0] * image_hw[1]
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(),
                                    nn.Linear(width, embedding_dim))
    def forward(self, images_NCHW):
        return self.layers(images_NCHW)

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
    def forward(self, images_NCHW):
        return self.layer(images_NCHW.mean((2, 3)))

class Branches(Backbone):
    def __init__(self, embedding_dim):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.whole, self.upper = nn.Linear(4, embedding_dim), nn.Linear(4, embedding_dim)
    def list_blocks(self):
        return list(self.body)
    def forward(self, images_NCHW):
        x = self.stem(images_NCHW)
        for block in self.body:
            x = x + block(x)
        half = x.shape[2] // 2
        return Output({"main": self.whole(x.mean((2, 3))), "upper": self.upper(x[:, :, :half].mean((2, 3)))})

class NoModule:
    pass
"""


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CUSTOM)
    return path


def config_of(tmp_path: Path, file: Path, model: str) -> Config:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{kind: custom, file: {file}, {model}}}\n")
    return load(recipe)


def test_a_custom_backbone_from_the_recipe_to_the_embedding(tmp_path: Path, custom: Path) -> None:
    config = config_of(
        tmp_path,
        custom,
        "name: Small, parameters: {width: 5}, embedding_dim: 6, pixel_mean: [1, 2, 3]",
    )
    network = config.model.build(image_hw=(8, 4))
    images_NHWC = torch.randint(0, 256, (3, 8, 4, 3), dtype=torch.uint8)
    output = as_output(network(to_input(images_NHWC, config.model)))
    assert output.embeddings["main"].shape == (3, 6)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config


def test_a_custom_backbone_is_told_apart_by_its_file(tmp_path: Path, custom: Path) -> None:
    before = config_of(tmp_path, custom, "name: Small, parameters: {width: 5}")
    seen = identity(before)
    custom.write_text(CUSTOM + "\n# changed\n")
    after = identity(before)
    assert [key for key in seen if seen[key] != after[key]] == ["model.file_sha256"]
    assert "model.num_parameters" not in tensors(before)


def test_a_custom_backbone_takes_only_what_its_constructor_names(
    tmp_path: Path, custom: Path
) -> None:
    model = config_of(tmp_path, custom, "name: Fixed, embedding_dim: 4").model
    assert as_output(model.build(image_hw=(8, 8))(torch.ones(2, 3, 8, 8))).embeddings[
        "main"
    ].shape == (2, 4)


def test_a_custom_backbone_with_branches_and_blocks(tmp_path: Path, custom: Path) -> None:
    network = config_of(tmp_path, custom, "name: Branches, embedding_dim: 7").model.build(
        image_hw=(8, 4)
    )
    images = torch.randn(2, 3, 8, 4)
    expected = network(images)
    assert set(network.depths().values()) == {0, 1, 2, 3}
    checkpoint_activations(network)
    found = as_output(network(images))
    assert found.embeddings.keys() == {"main", "upper"}
    assert torch.equal(found.embeddings["upper"], expected.embeddings["upper"])


def test_a_custom_class_that_is_no_network_is_told(tmp_path: Path, custom: Path) -> None:
    with pytest.raises(UserError, match=r"NoModule\(\) is a NoModule; derive it from torch.nn"):
        config_of(tmp_path, custom, "name: NoModule").model.build(image_hw=(8, 8))
    with pytest.raises(UserError, match=r"^model: .*Small: .* argument: .width.; it"):
        config_of(tmp_path, custom, "name: Small").model.build(image_hw=(8, 8))
