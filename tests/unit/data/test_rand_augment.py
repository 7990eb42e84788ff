"""RandAugment: each operation is Pillow's, as torchvision carries them out, with its ranges."""

import cv2
import numpy as np
import pytest
from changed_images import changed
from PIL import Image, ImageEnhance, ImageOps

from manyfaces.configs.transforms.rand_augment import RandAugment
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms import rand_augment
from manyfaces.data.transforms.augmentation import Augmentation

ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def by_pillow(word: str, image: Image.Image, sign: int, magnitude: int) -> Image.Image:
    """The operation as torchvision's `_apply_op` has it for Pillow's images."""
    width, height = image.size
    share = magnitude / 30
    affine = {
        "shear_x": (1, sign * 0.3 * share, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * share, 1, 0),
        "translate_x": (1, 0, int(sign * 150 / 331 * width * share), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, int(sign * 150 / 331 * height * share)),
    }
    if word in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[word])
    if word == "rotate":
        return image.rotate(sign * 30 * share)
    if word in ENHANCE:
        return ENHANCE[word](image).enhance(1 + sign * 0.9 * share)
    if word == "posterize":
        return ImageOps.posterize(image, 8 - round(magnitude / 7.5))
    if word == "solarize":
        return ImageOps.solarize(image, 255 * (1 - share))
    if word == "autocontrast":
        return ImageOps.autocontrast(image)
    if word == "equalize":  # a rounding apart from Pillow's
        channels = cv2.split(np.asarray(image))
        return Image.fromarray(cv2.merge([cv2.equalizeHist(each) for each in channels]))
    return image


@pytest.mark.parametrize("word", rand_augment.OPERATIONS)
@pytest.mark.parametrize("magnitude", [16, 30])
def test_each_operation_is_pillows(dataset, monkeypatch, word: str, magnitude: int) -> None:
    blobs = Store(dataset.part).read(range(12))
    number = rand_augment.OPERATIONS.index(word)
    draw = rand_augment.RandAugment.draw

    def only_this(self, uniform_NU, image_hw):
        uniform_NU = uniform_NU.copy()
        uniform_NU[:, 1] = (number + 0.5) / len(rand_augment.OPERATIONS)
        return draw(self, uniform_NU, image_hw)

    monkeypatch.setattr(rand_augment.RandAugment, "draw", only_this)
    transform = RandAugment(num_ops=1, magnitude=magnitude)
    images, plain, choices = changed(blobs, transform, image_hw=(112, 96))
    signs = np.sign(choices.steps[0]["factor_0"] - 1).astype(int)
    assert set(signs) == {1, -1}
    for image, source, sign in zip(images, plain, signs, strict=True):
        expected = by_pillow(word, Image.fromarray(source), sign, magnitude)
        difference = np.abs(image.astype(int) - np.asarray(expected))
        moved = 0 < number <= rand_augment.OPERATIONS.index("rotate")
        # A pixel that lies on the border between two may come from either.
        differs = difference > 2
        if word == "sharpness":  # Pillow smooths no pixel of the border
            differs = differs[1:-1, 1:-1]
        assert differs.mean() < (0.02 if moved else 0.001), difference.max()
        if word not in ("identity", "autocontrast"):
            assert (image != source).any()


def test_operations_are_drawn_evenly_and_by_position() -> None:
    augmentation = Augmentation([RandAugment(num_ops=4, magnitude=16)], (224, 224))
    [many] = augmentation.draw(0, np.arange(28_000)).steps
    for number in range(4):
        counts = np.bincount(many[f"op_{number}"], minlength=14)
        assert counts.min() > 1800
        assert counts.max() < 2200
    [some] = augmentation.draw(0, np.arange(500, 600)).steps
    for name, values in some.items():
        assert np.array_equal(values, many[name][500:600])
    assert abs(np.corrcoef(many["op_0"], many["op_1"])[0, 1]) < 0.03
    [rare] = Augmentation([RandAugment(p=0.25)], (112, 112)).draw(0, np.arange(28_000)).steps
    assert 0.72 < ((rare["op_0"] == 0) & (rare["op_1"] == 0)).mean() < 0.78


def test_four_in_a_row_keep_the_size(dataset) -> None:
    blobs = Store(dataset.part).read(range(12))
    images, plain, _ = changed(blobs, RandAugment(num_ops=4, magnitude=16), image_hw=(96, 64))
    again, _, _ = changed(blobs, RandAugment(num_ops=4, magnitude=16), image_hw=(96, 64))
    assert images.shape == plain.shape
    assert np.array_equal(images, again)
    assert (images != plain).any()
