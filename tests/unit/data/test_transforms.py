"""Each transform is what OpenCV makes of its choices, on images of any height and width."""

import cv2
import numpy as np
import pytest
import torch
from changed_images import SIZES, changed
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.crop import Crop
from manyfaces.configs.transforms.erase import Erase
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.gray import Gray
from manyfaces.configs.transforms.jpeg import Jpeg
from manyfaces.configs.transforms.low_resolution import LowResolution
from manyfaces.configs.transforms.mask import Mask
from manyfaces.configs.transforms.misalign import Misalign
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import Augmentation


@pytest.fixture
def blobs(dataset):
    return Store(dataset.part).read(range(12))


def warped(source, matrix):
    """OpenCV's warp by a matrix that counts from pixel corners, as DALI does; OpenCV counts from
    centres."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    centred = (np.linalg.inv(half) @ np.vstack([matrix, [0, 0, 1]]) @ half)[:2]
    return cv2.warpAffine(
        source,
        centred,
        source.shape[1::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_flips_are_exact(blobs, image_hw) -> None:
    images, plain, choices = changed(blobs, Flip(), image_hw=image_hw)
    [step] = choices.steps
    assert 0 < step["flip"].sum() < 12
    for image, source, flip in zip(images, plain, step["flip"], strict=True):
        assert np.array_equal(image, cv2.flip(source, 1) if flip else source)
    graph, _, _ = changed(blobs, Flip(), Blur(p=0.0), image_hw=image_hw)  # in DALI's graph
    assert np.array_equal(graph, images)


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_warps_follow_their_matrices(blobs, image_hw) -> None:
    transforms = (Misalign(shift_px=5, scale=0.1, rotate_deg=10), Flip())
    images, plain, choices = changed(blobs, *transforms, image_hw=image_hw, seed=3)
    [step] = choices.steps
    for image, source, matrix in zip(images, plain, step["matrix"], strict=True):
        difference = np.abs(image.astype(int) - warped(source, matrix))[8:-8, 8:-8]
        assert difference.mean() < 1.5


@given(
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5),
    image_hw=st.tuples(st.integers(32, 300), st.integers(32, 300)),
)
def test_a_misalignment_is_opencvs_rotation_about_the_centre(numbers, image_hw) -> None:
    transform = Misalign(shift_px=7, scale=0.3, rotate_deg=40).build()
    [matrix] = transform.matrix(np.array([numbers]), image_hw)
    x, y, scale, angle = 2 * np.array(numbers[1:]) - 1
    centre = (image_hw[1] / 2, image_hw[0] / 2)
    turned = cv2.getRotationMatrix2D(centre, -40 * angle, 1 + 0.3 * scale)
    matrix[:, 2] -= 7 * x, 7 * y
    assert np.allclose(cv2.invertAffineTransform(matrix), turned, atol=1e-6)


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_a_crop_shows_a_part_in_full_size(blobs, image_hw) -> None:
    height, width = image_hw
    images, plain, choices = changed(blobs, Crop(p=1.0, min_side=0.6), image_hw=image_hw)
    [step] = choices.steps
    for image, source, matrix in zip(images, plain, step["matrix"], strict=True):
        side, (left, top) = matrix[0, 0], matrix[:, 2]
        assert 0.6 <= side <= 1
        assert side == matrix[1, 1]
        assert min(left, top) >= 0
        assert left + side * width <= width + 1e-3
        assert top + side * height <= height + 1e-3
        # OpenCV's resize of the part, cut out at sixteenths of a pixel.
        large = cv2.resize(source, (16 * width, 16 * height), interpolation=cv2.INTER_LINEAR)
        rows = slice(round(16 * top), round(16 * (top + side * height)))
        columns = slice(round(16 * left), round(16 * (left + side * width)))
        part = cv2.resize(large[rows, columns], (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - part)[4:-4, 4:-4].mean() < 2.5


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_a_mask_hides_the_lower_face_and_moves_with_it(blobs, image_hw) -> None:
    height, width = image_hw
    images, plain, choices = changed(blobs, Mask(p=0.5, top=(0.5, 0.6)), image_hw=image_hw)
    [step] = choices.steps
    masked = 0
    for image, source, anchor, shape in zip(
        images, plain, step["anchor"], step["shape"], strict=True
    ):
        if not shape.any():
            assert np.array_equal(image, source)
            continue
        masked += 1
        (top, left), (mask_height, mask_width) = anchor.astype(int), shape.astype(int)
        assert round(0.5 * height) <= top <= round(0.6 * height)
        assert top + mask_height == height
        assert left == round(width / 8) == width - left - mask_width
        expected = cv2.rectangle(
            source.copy(), (left, top), (width - left - 1, height - 1), (127, 127, 127), -1
        )
        assert np.array_equal(image, expected)
    assert 0 < masked < 12


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_erasing_paints_rectangles_within_the_image(blobs, image_hw) -> None:
    transform = Erase(p=0.7, side_px=(10, 100))
    images, plain, choices = changed(blobs, transform, image_hw=image_hw)
    [step] = choices.steps
    assert (step["anchor"] + step["shape"] <= image_hw).all()
    for image, source, anchor, shape in zip(
        images, plain, step["anchor"], step["shape"], strict=True
    ):
        expected = source.copy()
        if shape.any():
            (top, left), (bottom, right) = anchor.astype(int), (anchor + shape).astype(int)
            cv2.rectangle(expected, (left, top), (right - 1, bottom - 1), (127, 127, 127), -1)
        assert np.array_equal(image, expected)
    many = Augmentation([transform], image_hw).draw(0, np.arange(20000)).steps[0]
    assert many["shape"].max(0).tolist() == [min(100, side) for side in image_hw]
    assert (many["anchor"] + many["shape"]).max(0).tolist() == list(image_hw)


def test_gray_images_have_no_colour(blobs) -> None:
    images, plain, choices = changed(blobs, Gray(p=0.5))
    [step] = choices.steps
    for image, source, saturation in zip(images, plain, step["saturation"], strict=True):
        spread = image.max(-1).astype(int) - image.min(-1)
        assert spread.max() <= 1 if saturation == 0 else np.array_equal(image, source)


def test_gray_behind_a_change_of_colours_is_done_with_it(blobs) -> None:
    transforms = (Colour(brightness=0.5, contrast=0.5, saturation=0.5), Gray(p=0.5))
    images, _, choices = changed(blobs, *transforms)
    [step] = choices.steps
    gray = step["saturation"] == 0
    assert 0 < gray.sum() < 12
    spread = images.max(-1).astype(int) - images.min(-1)
    assert spread[gray].max() <= 1
    colour, _, _ = changed(blobs, transforms[0])
    assert np.array_equal(images[~gray], colour[~gray])


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_blur_is_opencvs_and_spares_the_others(blobs, image_hw) -> None:
    images, plain, choices = changed(blobs, Blur(p=0.5, sigma_px=(1.0, 2.0)), image_hw=image_hw)
    [step] = choices.steps
    assert 0 < (step["sigma"] > 0).sum() < 12
    for image, source, sigma in zip(images, plain, step["sigma"].tolist(), strict=True):
        if sigma:
            border = cv2.BORDER_REFLECT_101
            expected = cv2.GaussianBlur(source, (0, 0), sigma, borderType=border)
            assert np.abs(image.astype(int) - expected).mean() < 0.5
        else:
            assert np.array_equal(image, source)


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_low_resolution_loses_detail_where_chosen(blobs, image_hw) -> None:
    height, width = image_hw
    transform = LowResolution(p=0.5, side_px=(20, 30))
    images, plain, choices = changed(blobs, transform, image_hw=image_hw)
    [step] = choices.steps
    assert 0 < (step["height"] > 0).sum() < 12
    sizes = zip(
        step["height"].astype(int).tolist(), step["width"].astype(int).tolist(), strict=True
    )
    for image, source, (low_height, low_width) in zip(images, plain, sizes, strict=True):
        if low_height:
            assert 20 <= min(low_height, low_width) <= 30
            assert abs(low_height / low_width - height / width) < 0.05
            small = cv2.resize(source, (low_width, low_height), interpolation=cv2.INTER_AREA)
            expected = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
            assert np.abs(image.astype(int) - expected).mean() < 4
            assert not np.array_equal(image, source)
        else:
            assert np.array_equal(image, source)


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
def test_compression_is_opencvs_and_spares_the_others(blobs, image_hw) -> None:
    images, plain, choices = changed(blobs, Jpeg(p=0.5, quality=(20, 60)), image_hw=image_hw)
    [step] = choices.steps
    for image, source, quality in zip(images, plain, step["quality"].tolist(), strict=True):
        if quality:
            options = [cv2.IMWRITE_JPEG_QUALITY, quality]
            again = cv2.imdecode(cv2.imencode(".jpg", source[:, :, ::-1], options)[1], 1)
            assert np.abs(image.astype(int) - again[:, :, ::-1]).mean() < 2.5
            assert not np.array_equal(image, source)
        else:
            assert np.array_equal(image, source)


def test_a_corrupt_image_costs_itself_only_where_all_are_changed(blobs) -> None:
    """The choices go with their images, however the batch is bisected."""
    transforms = (Mask(p=0.5), Misalign(shift_px=4), Flip(), Gray(p=0.5), Blur(p=0.5), Jpeg(p=0.5))
    augmentation = Augmentation(transforms, (96, 64))
    choices = augmentation.draw(2, np.arange(12))
    decode = Decoder((96, 64), 12, augmentation, device=torch.device("cpu"))
    whole, _ = decode(blobs, choices)
    damaged = list(blobs)
    damaged[4] = np.concatenate([blobs[4][:3], np.full(500, 7, np.uint8), blobs[4][-2:]])
    damaged[7] = blobs[7][:0]
    images, good = decode(damaged, choices)
    assert np.flatnonzero(~good).tolist() == [4, 7]
    assert torch.equal(images[torch.from_numpy(good)], whole[torch.from_numpy(good)])
