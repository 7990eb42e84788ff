"""Attacks against loops in float64, and the protocol over a small network on one and more ranks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import run_ranks
from pydantic import ValidationError
from tiny_encoder import PX, tiny_encoder
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.robustness import Robustness
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.attacks import Search, attacked, region_mask, start_noise
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.open import open_all

CPU = torch.device("cpu")


def made_set(folder: Path, pairs: int = 40) -> Path:
    rng = np.random.default_rng(5)
    images, same = [], []
    for pair in range(pairs):
        image = rng.integers(0, 256, (PX, PX, 3)).astype(np.uint8)
        noise = rng.normal(0, 6, image.shape)
        like = np.clip(image + noise, 0, 255).astype(np.uint8)
        other = rng.integers(0, 256, image.shape).astype(np.uint8)
        same.append(pair % 2 == 0)
        pair_of_images = (image, like if same[-1] else other)
        images += [cv2.imencode(".png", each)[1].tobytes() for each in pair_of_images]
    path = folder / "made.bin"
    write_bin(path, images, same)
    return path


def scored(config: Robustness, network: Path, batch_size: int = 200) -> Result:
    (protocol,) = open_all([config])
    return evaluate(protocol, Embedder.of(open_encoder(network, CPU), batch_size))


def told(result: Result) -> tuple[object, ...]:
    return result.scalars, result.tables, result.intervals


@pytest.mark.parametrize("universal", [False, True])
def test_search_is_a_loop_over_pixels(universal: bool) -> None:
    rng = np.random.default_rng(1)
    images, aims = rng.integers(20, 236, (2, 3, 3, 4, 5)).astype(np.float64)
    noise, mask = rng.uniform(-1, 1, images.shape), rng.integers(0, 2, (4, 5)).astype(np.float64)
    search = Search(budget=6, step=2.5, steps=4, universal=universal)

    def gains(changed: Tensor) -> Tensor:
        return -((changed - torch.from_numpy(aims)) ** 2).sum((1, 2, 3))

    found = attacked(
        torch.from_numpy(images), gains, torch.from_numpy(mask), torch.from_numpy(noise), search
    )
    change = np.stack([(noise[0] if universal else each) * 6 * mask for each in noise])
    for _ in range(4):
        slopes = -2 * (images + change - aims)
        if universal:
            worst = int((-((images + change - aims) ** 2).sum((1, 2, 3))).argmin())
            slopes = np.stack([slopes[worst]] * 3)
        for place in np.ndindex(images.shape):
            most = 6 * mask[place[2:]]
            moved = change[place] + 2.5 * np.sign(slopes[place])
            change[place] = min(max(moved, -most), most)
    np.testing.assert_array_equal(found.numpy(), images + np.trunc(change))


@settings(max_examples=25, deadline=None)
@given(
    region=st.sampled_from(["face", "sticker", "glasses", "lower_face"]),
    budget=st.floats(1, 255),
    step=st.floats(0.1, 255),
    universal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_changes_stay_in_budget_and_region(
    region: str, budget: float, step: float, universal: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, PX, PX)).astype(np.float32))
    weights = torch.from_numpy(rng.normal(size=images.shape).astype(np.float32))
    mask = region_mask(region, (PX, PX))  # type: ignore[arg-type]
    noise = torch.stack([start_noise(seed, number, (PX, PX)) for number in range(2)])
    found = attacked(
        images, lambda x: (x * weights).sum((1, 2, 3)), mask, noise, Search(budget, step, 3)
    )
    change = found - images
    assert 0 < change.abs().max() <= budget
    assert not change[:, :, mask == 0].any()
    assert found.min() >= 0
    assert found.max() <= 255
    assert torch.equal(found, found.round())
    assert 0 < mask.mean() <= 1
    assert (mask.mean() < 0.5) == (region != "face")


def test_universal_change_is_one_for_all() -> None:
    rng = np.random.default_rng(2)
    images = torch.full((4, 3, 8, 8), 128.0)
    weights = torch.from_numpy(rng.normal(size=images.shape).astype(np.float32))
    noise = torch.stack([start_noise(0, number, (8, 8)) for number in range(4)])
    search = Search(8, 2, 5, universal=True)
    found = attacked(
        images, lambda x: (x * weights).sum((1, 2, 3)), torch.ones(8, 8), noise, search
    )
    assert (found == found[:1]).all()
    assert (found != images).any()
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("goal", ["dodging", "impersonation"])
def test_success_rises_with_the_budget(tmp_path: Path, goal: str) -> None:
    network, path = tiny_encoder(tmp_path), made_set(tmp_path)
    config = Robustness(path=str(path), goal=goal, budgets=(1, 8, 64), far=0.1, steps=10)
    result = scored(config, network)
    rows = list(result.tables["success_by_budget"].values())
    rates = [row["success"] for row in rows]  # type: ignore[index]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0]
    assert rates[-1] == result.scalars["success"]
    assert rates[0] == result.scalars["clean"]
    cosines = [row["mean_cosine"] for row in rows]  # type: ignore[index]
    assert cosines == sorted(cosines, reverse=goal == "dodging")
    (protocol,) = open_all([config])
    embeddings = Embedder.of(open_encoder(network, CPU), 200).embed(protocol.images()).numpy()
    scores = metrics.cosine_scores(embeddings)
    own = scores[0::2] if goal == "dodging" else scores[1::2]
    impostors = np.sort(scores[1::2])[::-1]
    assert (impostors >= result.scalars["threshold"]).sum() == 2  # a tenth of 20
    assert cosines[0] == pytest.approx(own.mean())


def test_transfer_is_weaker_than_a_white_box(tmp_path: Path) -> None:
    network, other, path = tiny_encoder(tmp_path), tiny_encoder(tmp_path, 1), made_set(tmp_path)
    config = Robustness(path=str(path), budgets=(32,), far=0.1, steps=10)
    cosine = {
        made_with: scored(config.model_copy(update={"made_with": made_with}), network).tables[
            "success_by_budget"
        ]["32/255"]["mean_cosine"]  # type: ignore[index]
        for made_with in (None, str(network), str(other))
    }
    assert cosine[None] == cosine[str(network)]
    assert cosine[str(other)] > cosine[None] + 0.1  # type: ignore[operator]


def _on_a_rank(config: Robustness, network: Path) -> tuple[object, ...]:
    return told(scored(config, network))


@pytest.mark.parametrize("world_size", [2, 4])
def test_result_is_that_of_one_rank_and_of_any_batch(tmp_path: Path, world_size: int) -> None:
    torch.set_num_threads(1)
    network, path = tiny_encoder(tmp_path), made_set(tmp_path)
    config = Robustness(path=str(path), budgets=(4, 16), far=0.1, steps=5, group=6)
    alone = told(scored(config, network))
    assert told(scored(config, network, batch_size=7))[0] == pytest.approx(alone[0])
    for other in run_ranks(world_size, _on_a_rank, config, network):
        assert other == alone


def test_bad_options_are_told_in_one_line(tmp_path: Path) -> None:
    path = str(made_set(tmp_path))
    with pytest.raises(ValidationError, match="budgets have to rise"):
        Robustness(path=path, budgets=(8, 4))
    with pytest.raises(UserError, match="20 impostor pairs do not tell a threshold"):
        open_all([Robustness(path=path)])
