"""DALI decoding against OpenCV's, and a corrupt image costing itself only."""

import cv2
import numpy as np
import pytest
import torch

from manyfaces.configs.schema import Augment
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.store.mapped import Store
from manyfaces.data.transforms import augment

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


@pytest.mark.parametrize("kind", ["empty", "half", "noise", "header"])
@pytest.mark.parametrize("broken", [[0], [1], [0, 1], [2], [0, 2]])
def test_a_corrupt_image_leaves_the_batches_in_flight_as_they_are(
    blobs, kind: str, broken: list[int]
) -> None:
    """The next batch is always started before the last is finished, so a pipeline that ends takes
    two with it."""
    batches = [list(blobs[:8]), list(blobs[4:]), list(blobs[2:10]), list(blobs[::-1][:8])]
    whole = [Decoder(112, 8, device=CPU)(batch)[0] for batch in batches]
    for number in broken:
        batches[number][3] = corrupt(kind, batches[number][3])
    decode = Decoder(112, 8, device=CPU)
    started, found = [decode.start(batches[0])], []
    for batch in batches[1:]:
        started.append(decode.start(batch))
        found.append(decode.finish(started.pop(0)))
    found.append(decode.finish(started.pop(0)))
    for number, ((images, good), expected) in enumerate(zip(found, whole, strict=True)):
        assert good.tolist() == [not (number in broken and slot == 3) for slot in range(8)]
        assert torch.equal(images[torch.from_numpy(good)], expected[torch.from_numpy(good)])


def test_images_stay_as_they_are_while_others_are_decoded(blobs) -> None:
    """On the CPU they lie in DALI's memory."""
    decode = Decoder(112, 12, device=CPU)
    first, _ = decode(blobs)
    copy = first.clone()
    others = [decode(blobs[::-1])[0] for _ in range(5)]
    assert torch.equal(first, copy)
    assert len({images.data_ptr() for images in [first, *others]}) == 6


def test_sizes_of_all_kinds_in_one_batch(blobs) -> None:
    """An image of the right size comes as it is; one much larger than the rest does not pad them
    all."""
    large = cv2.imencode(
        ".jpg", np.random.default_rng(0).integers(0, 255, (600, 500, 3), np.uint8)
    )[1].reshape(-1)
    small = cv2.imencode(".jpg", np.full((40, 60, 3), 90, np.uint8))[1].reshape(-1)
    images, good = Decoder(112, 12, device=CPU)([*blobs[:5], large, small, *blobs[5:10]])
    assert good.all()
    assert torch.equal(
        images[torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10, 11])],
        Decoder(112, 12, device=CPU)(blobs[:10])[0],
    )
    assert (images[6].int() - 90).abs().max() <= 2
    expected = cv2.resize(by_opencv(large), (112, 112), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(images[5].numpy().astype(int) - expected).mean() < 20


def test_zeros_behind_an_image_do_not_make_it_broken(blobs) -> None:
    padded = [np.concatenate([blob, np.zeros(n, np.uint8)]) for n, blob in enumerate(blobs)]
    images, good = Decoder(112, 12, device=CPU)(padded)
    assert good.all()
    assert torch.equal(images, Decoder(112, 12, device=CPU)(blobs)[0])


def test_a_batch_without_a_good_image(blobs) -> None:
    images, good = Decoder(112, 12, device=CPU)([b[:10] for b in blobs])
    assert not good.any()
    assert images.sum() == 0


def test_other_sizes_are_resized(blobs) -> None:
    images, good = Decoder(64, 12, device=CPU)(blobs)
    assert good.all()
    assert images.shape == (12, 64, 64, 3)


def test_augmentation_follows_its_choices(blobs) -> None:
    """Against OpenCV: flips are exact; shift, scale and rotation agree but for the interpolation's
    rounding."""
    config = Augment(flip=1.0)
    flipped, _ = Decoder(112, 12, augment=config, device=CPU)(
        blobs, augment.draw(config, 0, np.arange(12), 112)
    )
    plain, _ = Decoder(112, 12, device=CPU)(blobs)
    assert torch.equal(flipped, plain.flip(2))

    config = Augment(flip=0.5, shift_px=5, scale=0.1, rotate_deg=10)
    choices = augment.draw(config, 3, np.arange(12), 112)
    warped, _ = Decoder(112, 12, augment=config, device=CPU)(blobs, choices)
    half = np.array(
        [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]
    )  # DALI counts from pixel corners, OpenCV from centres
    for image, source, matrix in zip(warped.numpy(), plain.numpy(), choices.matrix, strict=True):
        centred = (np.linalg.inv(half) @ np.vstack([matrix, [0, 0, 1]]) @ half)[:2]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(
            source, centred, (112, 112), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        assert np.abs(image.astype(int) - expected)[8:-8, 8:-8].mean() < 1.5


def test_colour_and_erasing(blobs) -> None:
    config = Augment(flip=0, gray=1.0, erase=1.0, erase_px=(20, 20))
    choices = augment.draw(config, 1, np.arange(12), 112)
    images, _ = Decoder(112, 12, augment=config, device=CPU)(blobs, choices)
    spread = images.numpy().astype(int)
    assert (spread.max(-1) - spread.min(-1)).max() <= 1
    for image, (y, x) in zip(images.numpy(), choices.erase_anchor.astype(int), strict=True):
        assert (image[y : y + 20, x : x + 20] == 127).all()


def changed(blobs, **settings):
    """The images with these settings and without, and the choices."""
    config = Augment(flip=0, **settings)
    choices = augment.draw(config, 5, np.arange(12), 112)
    images, good = Decoder(112, 12, augment=config, device=CPU)(blobs, choices)
    assert good.all()
    return images.numpy(), Decoder(112, 12, device=CPU)(blobs)[0].numpy(), choices


def test_blur_is_opencvs_and_spares_the_others(blobs) -> None:
    images, plain, choices = changed(blobs, blur=0.5, blur_sigma_px=(1.0, 2.0))
    assert 0 < (choices.blur_sigma > 0).sum() < 12
    for image, source, sigma in zip(images, plain, choices.blur_sigma.tolist(), strict=True):
        expected = (
            cv2.GaussianBlur(source, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
            if sigma
            else source
        )
        difference = np.abs(image.astype(int) - expected)
        assert difference.max() == 0 if sigma == 0 else difference.mean() < 0.5


def test_low_resolution_and_compression_lose_detail_where_chosen(blobs) -> None:
    images, plain, choices = changed(blobs, low_resolution=0.5, low_resolution_px=(20, 30))
    assert 0 < (choices.low_px > 0).sum() < 12
    for image, source, side in zip(images, plain, choices.low_px.astype(int).tolist(), strict=True):
        if side:
            small = cv2.resize(source, (side, side), interpolation=cv2.INTER_AREA)
            assert (
                np.abs(
                    image.astype(int)
                    - cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)
                ).mean()
                < 4
            )
            assert not np.array_equal(image, source)
        else:
            assert np.array_equal(image, source)
    images, plain, choices = changed(blobs, jpeg=0.5, jpeg_quality=(20, 60))
    for image, source, quality in zip(images, plain, choices.jpeg_quality.tolist(), strict=True):
        if quality:
            again = by_opencv(
                cv2.imencode(".jpg", source[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            )
            assert np.abs(image.astype(int) - again).mean() < 2.5
            assert not np.array_equal(image, source)
        else:
            assert np.array_equal(image, source)


def test_a_mask_hides_the_lower_face_and_moves_with_it(blobs) -> None:
    images, plain, choices = changed(blobs, mask=0.5, mask_top=(0.5, 0.6))
    for image, source, (top, left), (height, width) in zip(
        images, plain, choices.mask_anchor, choices.mask_shape, strict=True
    ):
        if height:
            assert 56 <= top <= 67
            assert top + height == 112
            assert (image[int(top) :, int(left) : int(left + width)] == 127).all()
            assert np.array_equal(image[: int(top)], source[: int(top)])
        else:
            assert np.array_equal(image, source)


def test_a_crop_shows_a_part_in_full_size(blobs) -> None:
    images, plain, choices = changed(blobs, crop=1.0, crop_min=0.6)
    for image, source, matrix in zip(images, plain, choices.matrix, strict=True):
        side, start = matrix[0, 0], matrix[:, 2]
        assert 0.6 <= side <= 1
        assert (start >= 0).all()
        assert (start + side * 112 <= 112 + 1e-3).all()
        part = cv2.warpAffine(
            source,
            np.array([[side, 0, start[0] + side / 2 - 0.5], [0, side, start[1] + side / 2 - 0.5]]),
            (112, 112),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        assert np.abs(image.astype(int) - part)[4:-4, 4:-4].mean() < 1.5


def test_one_more_change_does_not_move_the_others() -> None:
    positions = np.arange(30, 60)
    few = augment.draw(Augment(shift_px=3, gray=0.3, erase=0.2), 4, positions, 112)
    many = augment.draw(
        Augment(shift_px=3, gray=0.3, erase=0.2, blur=0.5, jpeg=0.5, mask=0.5, low_resolution=0.5),
        4,
        positions,
        112,
    )
    for name in ("matrix", "flip", "saturation", "erase_anchor", "erase_shape"):
        assert np.array_equal(getattr(few, name), getattr(many, name))


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
    config = Augment(
        misalign=0.3,
        rotate_deg=9,
        colour=0.2,
        contrast=0.4,
        blur=0.1,
        low_resolution=0.2,
        jpeg=0.3,
        jpeg_quality=(40, 50),
        mask=0.25,
    )
    choices = augment.draw(config, 1, np.arange(20000), 112)
    assert abs((choices.matrix[:, 0, 1] != 0).mean() - 0.3) < 0.02
    assert abs((choices.contrast != 1).mean() - 0.2) < 0.02
    assert abs((choices.blur_sigma > 0).mean() - 0.1) < 0.02
    assert abs((choices.low_px > 0).mean() - 0.2) < 0.02
    assert abs((choices.mask_shape[:, 0] > 0).mean() - 0.25) < 0.02
    assert set(np.unique(choices.jpeg_quality).tolist()) == {0, *range(40, 51)}
