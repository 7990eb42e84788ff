"""What a run needs of DINO besides its loss: which views are shown, what goes with what, which
weights a checkpoint has for whom, and networks that take the small views."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.timm import Timm
from manyfaces.configs.backbones.vit import VIT, ViT
from manyfaces.configs.multi_crop import MultiCrop
from manyfaces.configs.objectives.dino import DINO
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.plan import plan
from manyfaces.configs.schema import Backbone, Config, Data, Train
from manyfaces.configs.transforms.gray import Gray
from manyfaces.data.feed.view import main_view
from manyfaces.models.backbones.self_distilled import PROJECTED
from manyfaces.train.checkpoint.network import Built, Network
from manyfaces.train.objectives.objective import Objective, Setting

CPU = torch.device("cpu")
SMALL = DINO(prototypes=16, hidden_dim=8, bottleneck_dim=4)
FIXED = MobileFaceNet(scale=1, embedding_dim=16)
FREE = ViT(size="tiny", pool="mean", embedding_dim=16, neck="layernorm", mask_ratio=0)


def config_of(objective: Any = SMALL, model: Backbone = FIXED, **more: Any) -> Config:
    data = more.pop("data", {})
    return Config(
        model=model,
        objective=objective,
        data=Data(**{"path": "faces", "image_px": 56} | data),
        **more,
    )


def built(config: Config) -> Objective:
    setting = Setting(config, 5, (0,), CPU, None, None, 100)  # type: ignore[arg-type]
    objective: Objective = config.objective.build(setting=setting)
    return objective


@pytest.mark.parametrize(
    ("model", "crops", "px", "local"),
    [
        (FIXED, MultiCrop(), 56, (56, 56)),
        (FREE, MultiCrop(), 112, (48, 48)),
        (FREE, MultiCrop(local_px=36), 56, (36, 36)),
        (FREE, MultiCrop(local_px=(36, 27), local_crops=1), (108, 54), (36, 27)),
    ],
)
def test_each_view_has_the_size_that_the_network_takes(
    model: Backbone, crops: MultiCrop, px: Any, local: tuple[int, int]
) -> None:
    config = config_of(DINO(crops=crops), model, data={"image_px": px})
    views = built(config).views(main_view(config.data))
    names = ["global_0", "global_1", *(f"local_{n}" for n in range(crops.local_crops))]
    assert list(views) == names
    assert [views[name].image_hw for name in names[:2]] == [config.data.image_hw] * 2
    assert {views[name].image_hw for name in names[2:]} == {local}
    words = [[each.word() for each in views[name].augment] for name in names[:3]]
    usual = ["resized_crop", "flip", "colour", "gray", "blur"]
    assert words == [usual, [*usual, "solarise"], usual]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: config_of(DINO(crops=MultiCrop(local_px=36))),
            "crops.local_px 36, and model.kind mobilefacenet takes images of data.image_px only",
        ),
        (lambda: config_of(train=Train(micro_batch_size=4)), "train.micro_batch_size"),
        (lambda: config_of(data={"augment": (Gray(p=0.5),)}), "data.augment is not read"),
        (
            lambda: config_of(model=ViT(init="base", adapters=({"kind": "lora"},))),
            "set model.adapters=",
        ),
        (lambda: config_of(DINO(crops=MultiCrop(ratio=(2, 1)))), "ratio: the smallest 2"),
    ],
)
def test_what_does_not_go_together_is_told(make: Any, message: str) -> None:
    with pytest.raises(ValidationError) as told:
        make()
    (error,) = told.value.errors()
    assert message in error["msg"]
    assert "\n" not in error["msg"]


def test_the_teacher_s_backbone_has_the_backbone_s_file_and_is_evaluated() -> None:
    config = config_of()
    objective = built(config)
    backbone = config.model.build(image_hw=config.data.image_hw)
    module = objective.network(backbone)
    network = Network(module, Built(backbone, None, None), objective.evaluated(backbone))
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(1)
    own, beside = network.split(module.state_dict())
    assert own.keys() == backbone.state_dict().keys()
    for name, weight in module.teacher.backbone.state_dict().items():
        assert torch.equal(own[name], weight)
    assert {name.split(".")[0] for name in beside} == {"student", "teacher"}
    assert sum(name.startswith("teacher.head.") for name in beside) == 7
    assert network.evaluated_in(module) is module.teacher.backbone
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {f"student.{name}" for name, _ in module.student.named_parameters()}


def test_beside_a_margin_softmax_the_student_is_shown_the_main_view_too() -> None:
    config = config_of(Sum(of=(MarginSoftmax(), SMALL)), data={"augment": (Gray(p=0.5),)})
    objective = built(config)
    views = objective.views(main_view(config.data))
    assert next(iter(views)) == "main"
    assert len(views) == 11
    backbone = config.model.build(image_hw=config.data.image_hw)
    module = objective.network(backbone)
    assert objective.evaluated(backbone) is module.teacher.backbone
    groups = objective.groups(module, config.train.optimizer)
    assert [list(g.parameters) for g in groups if g.weight_decay == 0] == [
        ["student.head.prototypes"]
    ]
    assert set(objective.state()) == {"head", "dino"}


def test_a_vision_transformer_that_averages_takes_images_of_any_size() -> None:
    torch.manual_seed(0)
    network = FREE.build(image_hw=(56, 56)).eval()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == FREE.cost((56, 56)).parameters
    for hw in ((56, 56), (36, 36), (27, 45), (90, 63)):
        output = network(torch.randn(2, 3, *hw))
        patch_px = VIT["tiny"].patch_px
        assert output.tokens_NTD.shape[1] == (hw[0] // patch_px) * (hw[1] // patch_px)
        assert output.embeddings["main"].shape == (2, 16)
    # Of a plane, what is interpolated between the patches' centres is the plane.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    with torch.no_grad():
        network.pos_embed.copy_((rows + 2 * columns).flatten()[None, :, None])
    fine = network.positions(12, 12)[0, :, 0].unflatten(0, (12, 12))[2:-2, 2:-2]
    at = (torch.arange(12.0) + 0.5) / 2 - 0.5
    expected = (at[:, None] + 2 * at[None])[2:-2, 2:-2]
    assert torch.allclose(fine, expected, atol=0.15)
    assert network.positions(6, 6) is network.pos_embed


def test_which_networks_take_any_size() -> None:
    timm = {"name": "vit_tiny_patch16_224", "parameters": {"dynamic_img_size": True}}
    assert FREE.takes_any_size
    assert Timm(**timm).takes_any_size
    for fixed in (FIXED, ViT(), Timm(name="vit_tiny_patch16_224"), Timm(pool="flatten", **timm)):
        assert not fixed.takes_any_size


def test_the_plan_counts_the_teacher_the_heads_and_the_views() -> None:
    model = FIXED.cost((56, 56))
    config = config_of(train=Train(batch_size=8))
    found = plan(config, 1000, 10, 1)
    head = 16 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4 + 16 * 4
    module = built(config).network(config.model.build(image_hw=(56, 56)))
    assert sum(p.numel() for p in module.student.head.parameters()) == head
    # SGD with momentum: the student's head twice, the teacher's once, the centre.
    assert found.objective.state_bytes == 4 * (model.parameters + 3 * head + 16)
    views = 10
    passes = 3 * (views - 1) * model.multiply_adds + 2 * model.multiply_adds
    assert found.objective.flops == 2 * 8 * (passes + (3 * views + 2) * head)
    assert found.objective.wire_bytes == 0
    more = plan(config, 1000, 10, 4).objective
    assert more.wire_bytes == round(0.75 * (8 * head + 16 * 2 * 16))
    output = module(torch.zeros(2, 3, 56, 56))
    assert output.embeddings[PROJECTED].shape == (2, 16)
    assert bool((output.embeddings[PROJECTED].abs() <= 1 + 1e-6).all())
