"""Accuracy by the amount of misalignment: which images are made, and what comes of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.misalignment import Misalignment as MisalignmentConfig
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.misalignment import Amount, Misalignment
from manyfaces.train.protocols.open import open_all

HW, NUM_PAIRS = (32, 32), 20


class Pixels(nn.Module):
    """Embeds an image as its pixels."""

    def forward(self, images_NCHW: Tensor) -> Output:
        return Output({"main": images_NCHW.flatten(1)})


def picture(seed: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return np.asarray(cv2.resize(small, HW, interpolation=cv2.INTER_CUBIC), np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


@pytest.fixture
def bin_file(tmp_path: Path) -> Path:
    """Pairs of one picture and of two by turns."""
    blobs = []
    for pair in range(NUM_PAIRS):
        blobs += [png(picture(pair)), png(picture(pair if pair % 2 == 0 else 100 + pair))]
    write_bin(tmp_path / "set.bin", blobs, [pair % 2 == 0 for pair in range(NUM_PAIRS)])
    return tmp_path / "set.bin"


def opened(path: Path, **settings: object) -> Misalignment:
    config = MisalignmentConfig.model_validate({"path": str(path), **settings})
    (protocol,) = open_all([config])
    assert isinstance(protocol, Misalignment)
    return protocol


def evaluated(protocol: Misalignment) -> Result:
    encoder = Encoder(
        Pixels(),
        MobileFaceNet(embedding_dim=3 * HW[0] * HW[1]),
        HW,
        torch.device("cpu"),
        autocast=False,
    )
    return evaluate(protocol, Embedder.of(encoder, 16))


@pytest.mark.parametrize(
    "amount", [Amount("shift", 0.15), Amount("angle", 20.0), Amount("scaling", 0.3)]
)
@pytest.mark.parametrize("direction", [0.1, 0.45, 0.8])
def test_an_image_is_moved_about_its_centre(amount: Amount, direction: float) -> None:
    """Against scipy's affine_transform, with the matrix written from what the amount says."""
    width, height = 40, 30
    angle, scale, shift = 0.0, 1.0, np.zeros(2)
    if amount.way == "shift":
        turn = 2 * np.pi * direction
        shift = 0.15 * np.array([height * np.sin(turn), width * np.cos(turn)])
    elif amount.way == "angle":
        angle = np.deg2rad(20 if direction < 0.5 else -20)
    else:
        scale = 1.3 if direction < 0.5 else 1 / 1.3
    image = np.asarray(cv2.resize(picture(1)[..., 0], (width, height)), np.float64)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(scale * turned)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    expected = ndimage.affine_transform(
        image, inverse, centre - inverse @ (centre + shift), order=1, mode="constant"
    )
    found = cv2.warpAffine(image, amount.matrix(direction, width, height), (width, height))
    inside = slice(8, -8), slice(10, -10)
    np.testing.assert_allclose(found[inside], expected[inside], atol=6)


def test_the_second_images_are_moved_and_the_first_are_not(bin_file: Path) -> None:
    protocol = opened(bin_file, shifts=[0.1], angles=[], scalings=[0.2, 0.1])
    images = protocol.images()
    assert len(images) == len(protocol.keys()) == 2 * NUM_PAIRS + 3 * NUM_PAIRS
    assert [str(each) for each in protocol.amounts] == ["shift 0.1", "scaling 0.1", "scaling 0.2"]
    for pair in (0, 7):
        first = 2 * pair + 1
        assert bytes(images[first]) == bytes(images[: 2 * NUM_PAIRS][first])
        assert bytes(images[first]) == bytes(protocol.pairs.images[first])
        number = 2 * NUM_PAIRS + 2 * NUM_PAIRS + pair  # scaling 0.2
        made = cv2.imdecode(np.frombuffer(images[number], np.uint8), cv2.IMREAD_COLOR)
        original = picture(pair if pair % 2 == 0 else 100 + pair)
        matrix = protocol.amounts[2].matrix(float(protocol.directions_N[pair]), *HW)
        np.testing.assert_array_equal(made, cv2.warpAffine(original, matrix, HW))
        assert f"image {2 * pair + 1}, scaling 0.2" in protocol.image_name(number)


def test_accuracies_are_those_of_the_moved_images(bin_file: Path) -> None:
    protocol = opened(bin_file, shifts=[], angles=[40], scalings=[0.05])
    result = evaluated(protocol)
    images = protocol.images()
    same_N = np.arange(NUM_PAIRS) % 2 == 0
    expected = []
    for number in range(2):
        vectors = []
        for pair in range(NUM_PAIRS):
            places = 2 * pair, 2 * NUM_PAIRS + number * NUM_PAIRS + pair
            for place in places:
                pixels = cv2.imdecode(np.frombuffer(images[place], np.uint8), cv2.IMREAD_COLOR_RGB)
                both = [pixels, pixels[:, ::-1]]
                vectors.append(sum((each.astype(np.float64) - 127.5) for each in both).ravel())
        distances_N = metrics.squared_distances(np.stack(vectors))
        expected.append(float(metrics.kfold(distances_N, same_N).accuracy_F.mean()))
    assert result.scalars["accuracy"] == 1
    assert result.scalars["misaligned_accuracy"] == pytest.approx(np.mean(expected), abs=1e-9)
    rows = result.tables["misalignment"]
    assert list(rows) == ["as it is", "angle 40", "scaling 0.05"]
    assert rows["angle 40"]["accuracy"] == pytest.approx(expected[0], abs=1e-9)
    assert set(result.curves) == {"accuracy_by_angle", "accuracy_by_scaling"}
    np.testing.assert_allclose(result.curves["accuracy_by_angle"].x, [0, 40])


def test_directions_are_the_seeds(bin_file: Path) -> None:
    first, again, other = (opened(bin_file, seed=seed) for seed in (0, 0, 1))
    assert (first.directions_N == again.directions_N).all()
    assert (first.directions_N != other.directions_N).all()


def test_mistakes_are_told(bin_file: Path) -> None:
    with pytest.raises(ValidationError, match="all empty; give one an amount"):
        MisalignmentConfig(path="a.bin", shifts=(), angles=(), scalings=())
    blobs = [png(picture(0))] * 39 + [b"\xff\xd8 broken"]
    write_bin(bin_file, blobs, [True, False] * 10)
    with pytest.raises(UserError, match=r"image 39.* is not a whole, decodable"):
        evaluated(opened(bin_file))
