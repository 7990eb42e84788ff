"""The loss does not depend on the number of ranks: a LayerNorm neck where the network has no other
BatchNorm, BatchNorm over all ranks where it has; whole steps of the engine with the head."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks

from manyfaces.configs import schema
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import VIT, ViT, ViTShape
from manyfaces.configs.split import batch_share

pytestmark = pytest.mark.slow

PX, B, C, D, STEPS, RESUMED_AT = 18, 23, 40, 16, 4, 2
# So small that rounding does not grow a hundredfold a step, as it does where the loss is steep.
HEAD, LR = schema.Head(scale=8), 2e-4
SMALLEST = ViTShape(width=32, depth=2, heads=4)
MODELS: dict[str, tuple[schema.Backbone, bool]] = {
    "vit with a LayerNorm neck": (
        ViT(size="tiny", embedding_dim=D, neck="layernorm", mask_ratio=0, drop_path=0),
        False,
    ),
    "mobilefacenet with SyncBatchNorm": (MobileFaceNet(scale=1, embedding_dim=D), True),
    # What the others show would show nothing if this agreed too.
    "vit as published": (ViT(size="tiny", embedding_dim=D, mask_ratio=0, drop_path=0), False),
}
CPU = torch.device("cpu")


class Run:
    """A network under the engine, with a head; fresh, or from what `state` gave."""

    def __init__(self, model: schema.Backbone, sync: bool, saved: dict[str, Any] | None) -> None:
        from manyfaces.models.head.partial_fc import PartialFC
        from manyfaces.train.engine import Engine
        from manyfaces.train.parameter_groups import groups_of

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        train = schema.Train(batch_size=B, sync_batchnorm=sync)
        torch.manual_seed(1)
        network = model.build(image_hw=(PX, PX))
        if saved is not None:
            network.load_state_dict(_tensors(saved["weights"]))
        groups = groups_of(network, train.optimizer)
        settings = schema.Engine(zero_stage=1)
        self.engine = Engine(network, groups, model, train, settings, CPU, self.world_size)
        images, _ = self.batch(0)
        self.engine.warm_up(lambda: self.engine.run(images).embeddings["main"].sum() * 1e-6)
        self.engine.load_moments(_tensors(saved["moments"]) if saved else None)
        self.head = PartialFC(
            HEAD, C, D, seed=0, weight_decay=5e-4, device=CPU, group=dist.group.WORLD
        )
        if saved is not None:
            for name, tensor in self.head.tensors().items():
                whole = np.concatenate([part[name] for part in saved["head"]])
                tensor.copy_(torch.from_numpy(whole[self.head.lo : self.head.hi]))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of the images and labels of a step."""
        generator = torch.Generator().manual_seed(step)
        shape = (B, PX, PX, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, C, (B,), generator=generator)
        share = slice(*batch_share(B, self.rank, self.world_size))
        return images[share], labels[share]

    def losses(self, first: int, after: int) -> list[float]:
        """Train these steps."""
        found = []
        for step in range(first, after):
            images, labels = self.batch(step)
            embeddings = self.engine.run(images).embeddings["main"]
            done = self.head.step(embeddings, labels, lr=LR, position=step * B, batch_size=B)
            self.engine.backward((embeddings * done.d_embeddings_ND).sum())
            self.engine.step(LR)
            found.append(done.loss.item())
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; the head's is this rank's part."""
        return {
            "weights": _arrays(self.engine.weights()),
            "moments": _arrays(self.engine.read_moments()),
            "head": _arrays(self.head.tensors()),
        }


def _arrays(tensors: Any) -> dict[str, Any]:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def _tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def train_all(saved: dict[str, dict[str, Any]] | None) -> dict[str, tuple[list[float], Any]]:
    found, VIT["tiny"] = {}, SMALLEST  # in this process
    for name, (model, sync) in MODELS.items():
        run = Run(model, sync, saved and saved[name])
        losses = [] if saved else run.losses(0, RESUMED_AT)
        state = None if saved else run.state()
        found[name] = losses + run.losses(RESUMED_AT, STEPS), state
    return found


@pytest.fixture(scope="module")
def trained() -> dict[int, list[dict[str, tuple[list[float], Any]]]]:
    return {world: run_ranks(world, train_all, None) for world in (1, 2, 3)}


def test_the_loss_is_the_same_on_any_number_of_ranks(trained) -> None:
    for name in MODELS:
        alone = trained[1][0][name][0]
        differences = [
            abs(loss / expected - 1)
            for world in (2, 3)
            for ranks in trained[world]
            for loss, expected in zip(ranks[name][0], alone, strict=True)
        ]
        assert len(set(alone)) == STEPS
        assert (max(differences) <= 1e-5) == (name != "vit as published"), (name, differences)


def test_a_resume_on_another_number_of_ranks_goes_on_with_the_same_loss(trained) -> None:
    saved = {
        name: trained[2][0][name][1] | {"head": [rank[name][1]["head"] for rank in trained[2]]}
        for name in MODELS
    }
    for rank in run_ranks(1, train_all, saved):
        for name, (losses, _) in rank.items():
            expected = trained[3][0][name][0][RESUMED_AT:]
            agrees = np.allclose(losses, expected, rtol=1e-5, atol=0)
            assert agrees == (name != "vit as published"), (name, losses, expected)
