"""Hidden patches: exactly as many as the share says, blocks, the same wherever they are drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import ViT
from manyfaces.configs.errors import UserError
from manyfaces.configs.multi_crop import MultiCrop
from manyfaces.configs.objectives.ibot import IBOT
from manyfaces.configs.plan import plan
from manyfaces.configs.schema import Config, Data
from manyfaces.train.objectives.objective import Setting
from manyfaces.train.objectives.token_masks import block_masks

SMALL = IBOT(
    prototypes=16, hidden_dim=8, bottleneck_dim=4, crops=MultiCrop(local_crops=2, local_px=27)
)


@given(
    seed=st.integers(0, 2**62),
    positions=st.lists(st.integers(0, 2**48), min_size=1, max_size=12),
    view=st.integers(0, 3),
    grid=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    ratio=st.floats(0, 1),
    data=st.data(),
)
def test_masks_hide_as_many_as_they_should_and_are_a_pure_function(
    seed: int, positions: list[int], view: int, grid: tuple[int, int], ratio: float, data
) -> None:
    whole = block_masks(seed, np.array(positions), view, grid, 1.0, (ratio, ratio))
    assert whole.shape == (len(positions), grid[0] * grid[1])
    assert (whole.sum(1) == round(ratio * grid[0] * grid[1])).all()
    rows = data.draw(st.lists(st.integers(0, len(positions) - 1), min_size=1))
    part = block_masks(seed, np.array(positions)[rows], view, grid, 1.0, (ratio, ratio))
    assert np.array_equal(part, whole[rows])


def test_shares_are_uniform_and_other_images_are_whole() -> None:
    masks = block_masks(1, np.arange(4000), 0, (12, 12), 0.5, (0.1, 0.5))
    shares = masks.mean(1)
    assert (shares == 0).mean() == pytest.approx(0.5, abs=0.03)
    hidden = shares[shares > 0]
    assert np.quantile(hidden, [0, 0.5, 1]) == pytest.approx([0.1, 0.3, 0.5], abs=0.015)
    other = block_masks(1, np.arange(4000), 1, (12, 12), 0.5, (0.1, 0.5))
    assert (masks == other).all(1).mean() < 0.3  # those that are whole in both


def test_hidden_patches_lie_together() -> None:
    masks = block_masks(1, np.arange(500), 0, (12, 12), 1.0, (0.3, 0.3)).reshape(-1, 12, 12)
    pairs = (masks[:, 1:] & masks[:, :-1]).sum() / masks[:, 1:].sum()
    assert pairs > 0.6  # 0.3 where each is drawn by itself


def test_the_vision_transformer_hides_patches_behind_its_mask_token() -> None:
    torch.manual_seed(0)
    network = ViT(size="tiny", pool="mean", embedding_dim=16, mask_ratio=0).build(image_hw=(36, 36))
    network.eval()
    images = torch.randn(2, 3, 36, 36)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, 5] = True
    changed = images.clone()
    changed[0, :, 9:18, 9:18] += 1  # the patch in the second row and column
    plain, hidden = network(images), network(images, masked)
    assert torch.equal(network(changed, masked).embeddings["main"], hidden.embeddings["main"])
    assert not torch.allclose(network(changed).embeddings["main"], plain.embeddings["main"])
    assert torch.allclose(hidden.embeddings["main"][1], plain.embeddings["main"][1], atol=1e-6)
    assert not torch.allclose(hidden.embeddings["main"][0], plain.embeddings["main"][0])


def test_what_cannot_hide_patches_is_told() -> None:
    config = Config(
        model=MobileFaceNet(scale=1),
        data=Data(path="faces", image_px=56),
        objective=SMALL.model_copy(update={"crops": MultiCrop(local_crops=0)}),
    )
    setting = Setting(config, 5, (0,), torch.device("cpu"), None, None, 9)  # type: ignore[arg-type]
    objective = config.objective.build(setting=setting)
    with pytest.raises(UserError, match=r"cannot hide patches .* set model.kind=vit"):
        objective.network(config.model.build(image_hw=(56, 56)))
    with pytest.raises(ValidationError, match=r"set model\.mask_ratio=0"):
        Config(model=ViT(pool="mean"), data=Data(path="faces"), objective=SMALL)


def test_the_plan_counts_the_second_head() -> None:
    model = ViT(size="tiny", pool="mean", embedding_dim=16, mask_ratio=0)
    data = Data(path="faces", image_px=56)
    config = Config(model=model, data=data, objective=SMALL)
    setting = Setting(config, 5, (0,), torch.device("cpu"), None, None, 9)  # type: ignore[arg-type]
    module = config.objective.build(setting=setting).network(model.build(image_hw=(56, 56)))
    heads = sum(p.numel() for n, p in module.student.named_parameters() if "head." in n)
    found = plan(config, 1000, 10, 1).objective
    assert found.parameters == heads
    backbone = model.cost((56, 56)).parameters
    assert found.state_bytes == 4 * (backbone + 3 * heads + 2 * 16)
