"""Every objective that the schema knows resumes bit for bit from the checkpoint of any step, at
every ZeRO stage, with all that it keeps; and what one stage saved is what any other restores."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_tensors import tensors
from exact_resume import (
    assert_resumes_exactly,
    assert_same_state,
    small_tree,
    trained,
)
from safetensors.torch import load_file, save_file

from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.objectives.objective import Objective
from manyfaces.configs.schema import Config

STAGES = (0, 1, 2, 3)
HEAD = {"margin": {"kind": "adaface", "m": 0.3}, "sub_centers": 2, "scale": 32}
"""A head that keeps running numbers and several rows a class."""
TIMM = {
    "kind": "timm",
    "name": "vit_tiny_patch16_224",
    "parameters": {"depth": 1, "embed_dim": 16, "num_heads": 2},
}
DINO = {
    "kind": "dino",
    "prototypes": 32,
    "hidden_dim": 16,
    "bottleneck_dim": 8,
    "crops": {"local_crops": 2},
    "momentum": 0.9,
    "koleo_weight": 0.1,
    "freeze_prototypes_epochs": 0.05,
}
"""It keeps a teacher and a running mean, and lets the prototypes go within the run."""
TOKENS = Path(__file__).parents[1] / "token_network.py"
ADAPTERS = [{"kind": "lora", "rank": 2, "dropout": 0.1}]
OWN = '''
import torch
import torch.distributed as dist
from torch import nn

from manyfaces.configs.split import class_share
from manyfaces.models.backbones.output import Output
from manyfaces.train.objectives.objective import HeldByRank0, Loss, Objective, ShardedRows


class Projected(nn.Module):
    """A projector behind the backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.encoder = backbone
        self.projector = nn.Linear(16, 16)

    def forward(self, images):
        embeddings = self.encoder(images)
        return Output({"main": embeddings, "projected": self.projector(embeddings)})


class Still(Objective):
    """Projections stay near the running mean of all ranks; it counts the images of each class."""

    def __init__(self, setting):
        # As a program may hold it: not contiguous.
        self.mean = torch.zeros(16, 2).T
        self.classes = setting.num_identities
        self.first, after = class_share(self.classes, dist.get_rank(), dist.get_world_size())
        self.seen = torch.zeros(after - self.first, 1)
        self.steps = 0.0

    def network(self, backbone):
        return Projected(backbone)

    def loss(self, forward, batch, moment):
        projected = forward.embeddings("projected")
        value = (projected - self.mean[0]).square().mean() * (1 + self.steps)
        mean, labels = projected.detach().mean(0), torch.zeros(self.classes)
        labels.index_add_(0, batch.labels_N, torch.ones(len(batch.labels_N)))
        whole = value.detach().clone()
        for each in (mean, labels, whole):
            dist.all_reduce(each)
        self.mean.mul_(0.9).add_(0.1 * mean)
        self.seen += labels[self.first : self.first + len(self.seen), None]
        self.steps += 1
        return Loss(value, whole, whole.isfinite(), torch.tensor(moment.last))

    def dry_run(self, forward):
        return 1e-6 * forward.embeddings("projected").sum()

    def state(self):
        seen = ShardedRows({"seen": self.seen}, self.classes)
        return {"mean": HeldByRank0({"mean": self.mean}), "seen": seen}

    def numbers(self):
        return {"mean": {"steps": self.steps}}

    def restore(self, numbers, before):
        self.steps = numbers["mean"]["steps"]
'''


@pytest.fixture(scope="module")
def teacher(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network whose embeddings are wider than the student's."""
    folder = tmp_path_factory.mktemp("taught")
    tree = small_tree(dataset_path, folder, model={"embedding_dim": 24})
    return trained(folder / "teacher", tree, world_size=1).checkpoint(3)


@pytest.fixture(scope="module")
def sections(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each kind of objective needs besides its word, by the section of the configuration. One
    that is not here is trained as its word alone says."""
    file = tmp_path_factory.mktemp("own") / "still.py"
    file.write_text(OWN)
    distill = {"kind": "distill", "teacher": str(teacher)}
    return {
        "custom": {"objective": {"file": str(file), "name": "Still"}},
        "dino": {"objective": DINO, "data": {"augment": ["flip"]}},
        "distill": {"objective": distill},
        "ibot": {
            "objective": DINO | {"kind": "ibot"},
            "data": {"augment": ["flip"]},
            "model": {"file": str(TOKENS), "name": "Tokens", "embedding_dim": 16},
        },
        "margin_softmax": {"head": HEAD},
        "sum": {"objective": {"of": ["margin_softmax", "triplet", distill]}, "head": HEAD},
    }


def words(family: type[Any]) -> list[str]:
    """The kinds of a family, those among them that come in the future."""
    return [str(kind.word()) for kind in family.kinds()]


def at_stage(stage: int) -> dict[str, int]:
    return {"zero_stage": stage}


def test_a_run_resumes_exactly(dataset_path: Path, tmp_path: Path) -> None:
    """The usual objective at the usual stage, in the seconds that there are for every test."""
    assert_resumes_exactly(tmp_path, small_tree(dataset_path, tmp_path, head=HEAD))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        (kind, stage)
        for kind, stage in product(words(Objective), STAGES)
        if (kind, stage) != ("aroface", 3)  # which the configuration refuses
    ],
)
def test_every_objective_resumes_exactly(
    dataset_path: Path, tmp_path: Path, sections: dict[str, Any], kind: str, stage: int
) -> None:
    more = sections.get(kind, {})
    objective = {"kind": kind, **more.get("objective", {})}
    tree = small_tree(
        dataset_path, tmp_path, **(more | {"objective": objective}), engine=at_stage(stage)
    )
    assert_resumes_exactly(tmp_path, tree)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_teacher_is_restored_at_any_world_size(
    dataset_path: Path, tmp_path: Path, sections: dict[str, Any], stage: int
) -> None:
    """All that a checkpoint of two ranks holds, bit for bit; data go on where they were."""
    tree = small_tree(dataset_path, tmp_path, **sections["dino"], engine=at_stage(stage))
    whole = trained(tmp_path / "whole", tree, 2)
    start = whole.checkpoint(1)
    assert any(name.startswith("teacher.") for name in load_file(start / "network.safetensors"))
    for world_size in (1, 3):
        resumed = trained(tmp_path / f"on-{world_size}", tree, world_size, start)
        assert_same_state(resumed.restored(1), start)
        assert resumed.ids() == whole.ids(8)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_steps_in_micro_batches_resume_exactly(
    dataset_path: Path, tmp_path: Path, stage: int
) -> None:
    """With BatchNorm and dropout, whose statistics and random numbers are of a micro-batch."""
    train = {"micro_batch_size": 2}
    tree = small_tree(dataset_path, tmp_path, head=HEAD, train=train, engine=at_stage(stage))
    assert_resumes_exactly(tmp_path, tree)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_adapters_resume_exactly(dataset_path: Path, tmp_path: Path, stage: int) -> None:
    tree = small_tree(dataset_path, tmp_path, head=HEAD, engine=at_stage(stage))
    model = {**TIMM, "embedding_dim": 16}
    torch.manual_seed(1)
    whole = Config(**{**tree, "model": model}).model.build(image_hw=(32, 32)).state_dict()
    base = {k.removeprefix("trunk."): v for k, v in whole.items() if k.startswith("trunk.")}
    save_file(base, tmp_path / "base.safetensors")
    tree["model"] = {**model, "init": str(tmp_path / "base.safetensors"), "adapters": ADAPTERS}
    assert_resumes_exactly(tmp_path, tree)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [word for word in words(Margin) if word != "custom"])
def test_every_margin_resumes_exactly(dataset_path: Path, tmp_path: Path, kind: str) -> None:
    head = {"margin": kind, "scale": 30}
    assert_resumes_exactly(tmp_path, small_tree(dataset_path, tmp_path, head=head))


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        {"rows": {"momentum": 0}},
        {"rows": {"lazy_decay": True}, "sample_rate": 0.5},
        {"rows": {"optimizer": "rowwise", "dtype": "float16"}, "logits": "store16"},
        {"rows": {"optimizer": "rowwise", "dtype": "float8"}, "sample_rate": 0.5},
        {"rows": {"optimizer": "adamw", "dtype": "bfloat16", "lr_scale": 10}},
        {"rows": {"optimizer": "adamw"}, "sample_rate": 0.5, "placement": "host"},
        {"sample_rate": 0, "wire_dtype": "bfloat16"},
        {"sub_centers": 3, "filter_above": 0.2},
    ],
)
def test_every_way_to_keep_class_rows_resumes_exactly(
    dataset_path: Path, tmp_path: Path, head: dict[str, Any]
) -> None:
    assert_resumes_exactly(tmp_path, small_tree(dataset_path, tmp_path, head=head))


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": {"kind": "sgd", "lr": 0.1}, "sync_batchnorm": True},
        {"optimizer": {"kind": "sgd", "groups": [{"match": "0.*", "lr_scale": 0.25}]}},
        {"schedule": "cosine", "warmup_epochs": 0.1, "clip_norm": 0.1},
    ],
)
def test_every_way_to_train_the_network_resumes_exactly(
    dataset_path: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    data = {"order": "shuffle"}
    assert_resumes_exactly(tmp_path, small_tree(dataset_path, tmp_path, train=train, data=data))


@pytest.mark.slow
def test_any_stage_restores_what_any_other_saved(dataset_path: Path, tmp_path: Path) -> None:
    """All that one holds is what the other held, bit for bit; the losses of the steps behind agree
    but for the order in which gradients are summed."""
    tree = small_tree(dataset_path, tmp_path, head=HEAD)
    saved = {
        stage: trained(tmp_path / f"of-{stage}", tree, 2, engine=at_stage(stage))
        for stage in STAGES
    }
    for stage, whole in saved.items():
        start = whole.checkpoint(1)
        assert any("exp_avg_sq." in name for name in tensors(start))
        for other in set(STAGES) - {stage}:
            folder = tmp_path / f"{other}-from-{stage}"
            resumed = trained(folder, tree, 2, start, engine=at_stage(other))
            assert_same_state(resumed.restored(1), start)
            assert resumed.ids() == whole.ids(8)
            for step in (2, 3):
                ours, theirs = resumed.numbers[step], whole.numbers[step]
                assert np.isclose(ours["train/loss"], theirs["train/loss"], rtol=1e-5, atol=0)
