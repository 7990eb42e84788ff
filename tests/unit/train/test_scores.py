"""Scores of a network beside its embeddings: through the embedder, a checkpoint, an exported file
and `load_model`."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exact_resume import small_tree, trained
from launcher import run_ranks
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.store.samples import Stores
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.score_heads import (
    Scored,
    ScoreHead,
    named_weights,
    read_score_heads,
    score_heads,
)
from manyfaces.train.checkpoint.layout import BESIDE_BACKBONE
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.exported import write_exported
from manyfaces.train.evaluation.model import Model
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.protocol import Protocol

HW, D, CPU = (8, 6), 5, torch.device("cpu")


class Pooled(nn.Module):
    """Embeddings of the mean colours, and a branch that sees their order."""

    def forward(self, images_NCHW: Tensor) -> Output:
        mean_NC = images_NCHW.mean((2, 3))
        left_NC = images_NCHW[..., : HW[1] // 2].mean((2, 3))
        return Output({"main": torch.cat([mean_NC, left_NC[:, :2]], 1), "left": left_NC})


def heads() -> dict[str, ScoreHead]:
    torch.manual_seed(0)
    return {"quality": ScoreHead("main", D), "light": ScoreHead("left", 3)}


def by_hand(images_NHWC: np.ndarray, own: dict[str, ScoreHead]) -> dict[str, np.ndarray]:
    pixels = (images_NHWC.astype(np.float64) - 127.5) / 127.5
    mean, left = pixels.mean((1, 2)), pixels[:, :, : HW[1] // 2].mean((1, 2))
    inputs = {"quality": np.concatenate([mean, left[:, :2]], 1), "light": left}
    return {
        name: inputs[name] @ own[name].weight.detach().numpy()[0] + own[name].bias.item()
        for name in own
    }


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *HW, 3), np.uint8)


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_those_of_the_layers_and_of_both_sides_their_mean(autocast: bool) -> None:
    own, images = heads(), pixels(7)
    network, model = Scored(Pooled(), own), MobileFaceNet(embedding_dim=D)
    embedder = Embedder(network, model, HW, CPU, batch_size=3, autocast=autocast)
    blobs = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    expected, mirrored = by_hand(images, own), by_hand(images[:, :, ::-1], own)
    for found, both in ((embedder.embed_scored(blobs), False),
                        (embedder.embed_scored(blobs, flip="sum"), True)):  # fmt: skip
        assert found.scores.keys() == own.keys()
        for name, scores_N in found.scores.items():
            wanted = (expected[name] + mirrored[name]) / 2 if both else expected[name]
            assert scores_N.dtype == np.float32
            np.testing.assert_allclose(scores_N, wanted, atol=1e-6)
    assert np.abs(expected["light"] - mirrored["light"]).max() > 0.01
    np.testing.assert_array_equal(embedder.embed(blobs), embedder.embed_scored(blobs)[0])


def test_heads_are_found_wherever_they_stand_in_a_network() -> None:
    own = heads()
    network = nn.Sequential(nn.Sequential(Scored(nn.Identity(), own)), nn.Linear(2, 2))
    assert score_heads(network) == own
    weights = network.state_dict()
    assert set(weights) > {f"0.0.{name}" for name in named_weights(own)}
    read = read_score_heads(weights, {"light": "left", "quality": "main"})
    for name, head in read.items():
        assert head.branch == own[name].branch
        assert torch.equal(head.weight, own[name].weight)
    with pytest.raises(KeyError, match=r"scores\.likeness\.weight"):
        read_score_heads(weights, {"likeness": "main"})


def test_a_score_of_an_embedding_that_is_not_there_is_told() -> None:
    network = Scored(Pooled(), {"quality": ScoreHead("right", 3)})
    with pytest.raises(
        UserError, match=r"embedding 'right' of 3 numbers, and the backbone has 'main' of 5, 'left'"
    ):
        network(torch.zeros(1, 3, *HW))


@pytest.fixture(scope="module")
def run(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network learns the quality inside a sum."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    tree = small_tree(dataset_path, folder, objective={"kind": "sum", "of": ["triplet", "cr_fiqa"]})
    return trained(folder, tree, 1).folder


@pytest.fixture(scope="module")
def jpegs(dataset_path: Path) -> list[bytes]:
    return [bytes(blob) for blob in Stores(open_dataset(dataset_path)).read(np.arange(6))]


def test_a_checkpoint_s_network_gives_the_quality_and_so_does_its_export(
    run: Path, jpegs: list[bytes], tmp_path: Path
) -> None:
    model = Model.open(run)
    found = model.scores(jpegs, batch_size=4)
    assert list(found) == ["norm", "quality"]
    embeddings_ND = Embedder.of(model.encoder, 6).embed(jpegs).numpy().astype(np.float64)
    weights = load_file(max((run / "checkpoints").glob("step-*")) / BESIDE_BACKBONE)
    (weight_D,), bias = weights["scores.quality.weight"], weights["scores.quality.bias"]
    np.testing.assert_allclose(
        found["quality"], embeddings_ND @ weight_D.double().numpy() + bias.item(), atol=1e-5
    )
    np.testing.assert_allclose(found["norm"], np.linalg.norm(embeddings_ND, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(model.quality(jpegs, batch_size=4), found["quality"])
    assert np.ptp(found["quality"]) > 0
    pixels = [cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR_RGB) for each in jpegs]
    np.testing.assert_allclose(model.quality(pixels), found["quality"], atol=0.02)
    assert model.quality([]).shape == (0,)

    file, plain = tmp_path / "face.safetensors", tmp_path / "face.pth"
    for each in (file, plain):
        write_exported(model.encoder, each, "a test")
    np.testing.assert_array_equal(Model.open(file).scores(jpegs, batch_size=4)["quality"],
                                  found["quality"])  # fmt: skip
    assert torch.load(plain, weights_only=True).keys() == model.encoder.backbone.state_dict().keys()


def test_a_network_without_quality_says_so_and_gives_its_norm() -> None:
    torch.manual_seed(2)
    settings = MobileFaceNet(embedding_dim=D)
    model = Model(Encoder(Pooled(), settings, HW, CPU, autocast=False))
    images = list(pixels(3))
    norms_N = model.scores(images)["norm"]
    np.testing.assert_allclose(
        norms_N, np.linalg.norm(model.encoder.embed(torch.from_numpy(pixels(3))), axis=1)
    )
    with pytest.raises(UserError, match="gives no quality; train it with objective=cr_fiqa"):
        model.quality(images)


class Noted(Protocol):
    """Keeps what the network says of each image."""

    name = "noted"
    quantities = (Quantity("mean", "mean"),)

    def __init__(self, blobs: list[bytes]) -> None:
        self.blobs = blobs

    def images(self) -> list[bytes]:
        return self.blobs

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        raise AssertionError("scored_result is there")

    def scored_result(
        self, embeddings_ND: NDArray[np.float32], scores: Mapping[str, NDArray[np.floating]]
    ) -> Result:
        by_image = {name: dict(enumerate(values.tolist())) for name, values in scores.items()}
        tables = {
            name: {str(image): each for image, each in by.items()} for name, by in by_image.items()
        }
        return Result(
            "noted", self.quantities, {"mean": float(embeddings_ND.mean())}, tables=tables
        )


def noted(count: int) -> dict[str, list[float]]:
    """The scores that reach a protocol of `count` images, of which the last is there twice."""
    torch.set_num_threads(1)
    blobs = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in pixels(count)]
    embedder = Embedder(Scored(Pooled(), heads()), MobileFaceNet(embedding_dim=D), HW, CPU)
    result = evaluate(Noted([blobs[-1], *blobs]), embedder)
    return {name: list(table.values()) for name, table in result.tables.items()}


@pytest.mark.parametrize("count", [7, 2])
def test_the_scores_of_all_ranks_reach_the_protocol(count: int) -> None:
    """Of two images a third rank has none."""
    expected = by_hand(pixels(count), heads())
    for found in run_ranks(3, noted, count):
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values == pytest.approx([expected[name][-1], *expected[name]], abs=1e-6)
