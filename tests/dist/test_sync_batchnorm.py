"""BatchNorm over all ranks against torch's BatchNorm on the joined batch, at uneven shares."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.configs.split import batch_share
from manyfaces.models.backbones.sync_batchnorm import synchronise_batchnorm

B, C = 7, 5
CPU = torch.device("cpu")
Facts = dict[str, NDArray[Any]]
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "maps": (nn.BatchNorm2d(C, momentum=0.3), (4, 3)),
    "vectors": (nn.BatchNorm1d(C, eps=2e-5), ()),
    "without weights": (nn.BatchNorm1d(C, affine=False), (6,)),
    "a mean over batches": (nn.BatchNorm2d(C, momentum=None), (2, 2)),
    "without statistics": (nn.BatchNorm2d(C, track_running_stats=False), (2, 2)),
}


def batches(behind: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Two batches with the gradients of their outputs."""
    generator = torch.Generator().manual_seed(3)
    shape, dtype = (B, C, *behind), torch.float64
    spread = torch.rand(B, C, *[1] * len(behind), generator=generator, dtype=dtype) * 9
    return [
        (
            torch.randn(shape, generator=generator, dtype=dtype) * 3 + spread,
            torch.randn(shape, generator=generator, dtype=dtype),
        )
        for _ in range(2)
    ]


def steps(layer: nn.Module, behind: tuple[int, ...], share: slice) -> Facts:
    """What comes out of this share of two batches, with the gradients, and the layer's statistics
    in the end."""
    facts: Facts = {}
    for number, (x, d_out) in enumerate(batches(behind)):
        x_share = x[share].clone().requires_grad_()
        layer.zero_grad()
        out = layer(x_share)
        out.backward(d_out[share])
        assert x_share.grad is not None
        facts |= {f"out {number}": out.detach().numpy(), f"d x {number}": x_share.grad.numpy()}
        for name, weight in layer.named_parameters():
            assert weight.grad is not None
            facts[f"d {name} {number}"] = weight.grad.numpy().copy()
    layer.eval()
    facts["in evaluation"] = layer(batches(behind)[0][0]).detach().numpy()
    return facts | {name: buffer.numpy() for name, buffer in layer.named_buffers()}


def prepared(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for number, weight in enumerate(layer.parameters()):
            weight.copy_(torch.linspace(-1, 2, C) + number)
    return layer


def synchronised(layer: nn.Module) -> nn.Module:
    assert dist.group.WORLD is not None
    return synchronise_batchnorm(layer, dist.group.WORLD, CPU)


def of_a_rank() -> tuple[dict[str, Facts], Facts]:
    group = dist.group.WORLD
    assert group is not None
    share = slice(*batch_share(B, dist.get_rank(), dist.get_world_size()))
    found = {}
    for name, (layer, behind) in LAYERS.items():
        before = prepared(layer)
        network = synchronised(nn.Sequential(before))
        after = network[0]  # type: ignore[index]
        assert after.state_dict().keys() == before.state_dict().keys()
        assert all(a is b for a, b in zip(after.parameters(), before.parameters(), strict=True))
        asked = group._get_sequence_number_for_group()
        found[name] = steps(after, behind, share)
        asked = group._get_sequence_number_for_group() - asked
        assert asked == (4 if dist.get_world_size() > 1 else 0)  # none in evaluation
    return found, in_other_types(share)


def in_other_types(share: slice) -> Facts:
    """In float32 far from zero, where a difference of mean squares has no digit left, and in
    bfloat16 under autocast."""
    x = batches(())[0][0] + 1e5
    far = synchronised(nn.BatchNorm1d(C))(x[share].float())
    half = synchronised(nn.BatchNorm1d(C))
    narrow = batches(())[0][0][share].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = half(narrow)
    out.sum().backward()
    assert narrow.grad is not None
    assert (out.dtype, narrow.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    return {"far": far.detach().numpy(), "narrow": out.detach().float().numpy()}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_it_is_batchnorm_of_the_joined_batch(world_size: int) -> None:
    ranks = run_ranks(world_size, of_a_rank)
    for name, (layer, behind) in LAYERS.items():
        expected = steps(prepared(layer), behind, slice(None))
        for key, value in expected.items():
            parts = [found[name][key] for found, _ in ranks]
            if key.startswith(("out", "d x")):
                assert np.allclose(np.concatenate(parts), value, rtol=1e-11, atol=1e-12), key
            elif key.startswith("d "):
                assert np.allclose(sum(parts), value, rtol=1e-11, atol=1e-12), key
            else:
                assert all(np.allclose(part, value, rtol=1e-12, atol=0) for part in parts), key
    x = batches(())[0][0]
    for key, values, limit in (("far", (x + 1e5).float(), 5e-3), ("narrow", x.bfloat16(), 0.02)):
        exact = nn.BatchNorm1d(C).double()(values.double()).detach().numpy()
        found = np.concatenate([others[key] for _, others in ranks])
        assert np.abs(found - exact).max() < limit * np.abs(exact).max(), key


class ClippedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(min=0)


def refused() -> None:
    with pytest.raises(UserError, match=r"train.sync_batchnorm: the network has a ClippedNorm \(1"):
        synchronised(nn.Sequential(nn.ReLU(), ClippedNorm(C)))


def test_a_layer_that_does_more_than_batchnorm_is_refused() -> None:
    run_ranks(1, refused)
