"""DALI decoding against OpenCV's, and a corrupt image costing itself only."""

import cv2
import numpy as np
import pytest
import torch

from manyfaces.configs.schema import Augment
from manyfaces.data import augment
from manyfaces.data.decode import Decoder
from manyfaces.data.store import Store

CPU = torch.device("cpu")


@pytest.fixture
def blobs(dataset):
    return Store(dataset).read(range(12))


def by_opencv(blob):
    return cv2.imdecode(blob, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_images_are_opencvs(blobs) -> None:
    images, good = Decoder(112, 12, device=CPU)(blobs)
    assert good.all()
    assert images.shape == (12, 112, 112, 3)
    difference = np.abs(images.numpy().astype(int) - np.stack([by_opencv(b) for b in blobs]))
    assert difference.mean() < 1
    assert difference.max() <= 12  # two decoders' chroma upsampling


def corrupt(kind: str, blob):
    return {
        "empty": blob[:0],
        "html": np.frombuffer(b"<html>not found</html>", np.uint8),
        "half": blob[: len(blob) // 2],
        "cut": blob[:-40],
        "noise": np.concatenate([blob[:3], np.full(500, 7, np.uint8), blob[-2:]]),
        "header": np.concatenate([blob[:30], blob[200:]]),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "html", "half", "cut", "noise", "header"])
@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_corrupt_image_costs_itself_only(blobs, kind: str, at: int) -> None:
    decode = Decoder(112, 12, device=CPU)
    whole, _ = decode(blobs)
    damaged = list(blobs)
    damaged[at] = corrupt(kind, blobs[at])
    images, good = decode(damaged)
    others = np.arange(12) != at
    assert good.tolist() == others.tolist()
    assert torch.equal(images[torch.from_numpy(others)], whole[torch.from_numpy(others)])
    # Its slot shows another image of the batch, so that BatchNorm sees no blank.
    assert torch.equal(images[at], whole[(at + 1) % 12])
    again, _ = decode(blobs)
    assert torch.equal(again, whole)


def test_a_batch_without_a_good_image(blobs) -> None:
    images, good = Decoder(112, 12, device=CPU)([b[:10] for b in blobs])
    assert not good.any()
    assert images.sum() == 0


def test_other_sizes_are_resized(blobs) -> None:
    images, good = Decoder(64, 12, device=CPU)(blobs)
    assert good.all()
    assert images.shape == (12, 64, 64, 3)


def test_augmentation_follows_its_choices(blobs) -> None:
    """Against OpenCV: flips are exact; shift, scale and rotation agree but for the interpolation's rounding."""
    config = Augment(flip=1.0)
    flipped, _ = Decoder(112, 12, augment=config, device=CPU)(blobs, augment.draw(config, 0, np.arange(12), 112))
    plain, _ = Decoder(112, 12, device=CPU)(blobs)
    assert torch.equal(flipped, plain.flip(2))

    config = Augment(flip=0.5, shift_px=5, scale=0.1, rotate_deg=10)
    choices = augment.draw(config, 3, np.arange(12), 112)
    warped, _ = Decoder(112, 12, augment=config, device=CPU)(blobs, choices)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # DALI counts from pixel corners, OpenCV from centres
    for image, source, matrix in zip(warped.numpy(), plain.numpy(), choices.matrix, strict=True):
        centred = (np.linalg.inv(half) @ np.vstack([matrix, [0, 0, 1]]) @ half)[:2]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(source, centred, (112, 112), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(image.astype(int) - expected)[8:-8, 8:-8].mean() < 1.5


def test_colour_and_erasing(blobs) -> None:
    config = Augment(flip=0, gray=1.0, erase=1.0, erase_px=(20, 20))
    choices = augment.draw(config, 1, np.arange(12), 112)
    images, _ = Decoder(112, 12, augment=config, device=CPU)(blobs, choices)
    spread = images.numpy().astype(int)
    assert (spread.max(-1) - spread.min(-1)).max() <= 1
    for image, (y, x) in zip(images.numpy(), choices.erase_anchor.astype(int), strict=True):
        assert (image[y : y + 20, x : x + 20] == 127).all()


def test_choices_are_a_pure_function_of_seed_and_position() -> None:
    config = Augment(shift_px=4, scale=0.1, rotate_deg=5, brightness=0.2, gray=0.2, erase=0.3)
    whole = augment.draw(config, 9, np.arange(50, 90), 112)
    part = augment.draw(config, 9, np.array([70]), 112)
    assert np.array_equal(whole.matrix[20], part.matrix[0])
    assert np.array_equal(whole.erase_anchor[20], part.erase_anchor[0])
    assert not np.array_equal(augment.draw(config, 8, np.array([70]), 112).matrix, part.matrix)


def test_probabilities_and_ranges() -> None:
    config = Augment(flip=0.3, shift_px=4, brightness=0.25, erase=0.4, erase_px=(10, 20))
    choices = augment.draw(config, 0, np.arange(20000), 112)
    assert abs(choices.flip.mean() - 0.3) < 0.02
    assert np.abs(choices.brightness - 1).max() <= 0.25
    erased = choices.erase_shape.any(1)
    assert abs(erased.mean() - 0.4) < 0.02
    assert choices.erase_shape[erased].min() == 10
    assert choices.erase_shape.max() == 20
    assert (choices.erase_anchor + choices.erase_shape).max() <= 112
