"""DALI decoding against OpenCV's, and a corrupt image costing itself only."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from manyfaces.data.feed.decode import Decoder, ViewsDecoder
from manyfaces.data.store.samples import Store

CPU = torch.device("cpu")


@pytest.fixture
def blobs(dataset):
    return Store(dataset.part).read(range(12))


def by_opencv(blob):
    return cv2.imdecode(blob, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_images_are_opencvs(blobs) -> None:
    images, good = Decoder((112, 112), 12, device=CPU)(blobs)
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
    decode = Decoder((112, 112), 12, device=CPU)
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
    whole = [Decoder((112, 112), 8, device=CPU)(batch)[0] for batch in batches]
    for number in broken:
        batches[number][3] = corrupt(kind, batches[number][3])
    decode = Decoder((112, 112), 8, device=CPU)
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
    decode = Decoder((112, 112), 12, device=CPU)
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
    images, good = Decoder((112, 112), 12, device=CPU)([*blobs[:5], large, small, *blobs[5:10]])
    assert good.all()
    assert torch.equal(
        images[torch.tensor([0, 1, 2, 3, 4, 7, 8, 9, 10, 11])],
        Decoder((112, 112), 12, device=CPU)(blobs[:10])[0],
    )
    assert (images[6].int() - 90).abs().max() <= 2
    expected = cv2.resize(by_opencv(large), (112, 112), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(images[5].numpy().astype(int) - expected).mean() < 20


def test_zeros_behind_an_image_do_not_make_it_broken(blobs) -> None:
    padded = [np.concatenate([blob, np.zeros(n, np.uint8)]) for n, blob in enumerate(blobs)]
    images, good = Decoder((112, 112), 12, device=CPU)(padded)
    assert good.all()
    assert torch.equal(images, Decoder((112, 112), 12, device=CPU)(blobs)[0])


def test_a_batch_without_a_good_image(blobs) -> None:
    images, good = Decoder((112, 112), 12, device=CPU)([b[:10] for b in blobs])
    assert not good.any()
    assert images.sum() == 0


@pytest.mark.parametrize("kind", ["empty", "noise", "header"])
@pytest.mark.parametrize("length", [1, 5])
def test_a_batch_of_corrupt_images_is_no_fault_of_the_decoder(
    blobs, kind: str, length: int
) -> None:
    decode = Decoder((112, 112), 12, device=CPU)
    images, good = decode([corrupt(kind, blob) for blob in blobs[:length]])
    assert not good.any()
    assert images.sum() == 0
    assert decode(blobs)[1].all()


@pytest.mark.parametrize("before", [0, 5000])
def test_an_image_of_too_many_pixels_is_left_out_by_its_header(blobs, before: int) -> None:
    """Its size is changed in the header; decoded, it would take 12 GB."""
    comment = b"\xff\xfe" + (before + 2).to_bytes(2) + bytes(before)
    body = bytearray(bytes(blobs[3][:2]) + comment + bytes(blobs[3][2:]))
    at = body.index(b"\xff\xc0")
    body[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    huge = np.frombuffer(bytes(body), np.uint8)
    for others in (blobs[:3], [*blobs[:2], blobs[0][:1]]):
        decoding = Decoder((112, 112), 4, device=CPU).start([*others, huge])
        assert not decoding.good[3]
        assert decoding.good[:2].all()


@pytest.mark.parametrize("bytes_each", [0, 1, 2, 3, 4])
def test_a_batch_of_hardly_a_byte(bytes_each: int) -> None:
    blob = np.frombuffer(b"\xff\xd8\xff\xd9", np.uint8)[:bytes_each]
    assert not Decoder((112, 112), 3, device=CPU)([blob] * 3)[1].any()


def test_a_decoder_that_does_not_work_is_no_fault_of_the_images(blobs, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ViewsDecoder, "_collect", broken)
    with pytest.raises(RuntimeError, match="could not decode any of 3 images: out of memory"):
        Decoder((112, 112), 3, device=CPU)(blobs[:3])


@pytest.mark.parametrize("image_hw", [(64, 64), (96, 40), (112, 128)])
def test_other_sizes_are_resized(blobs, image_hw: tuple[int, int]) -> None:
    """Against OpenCV, whose weights differ a little where an image is made smaller."""
    images, good = Decoder(image_hw, 12, device=CPU)(blobs)
    assert good.all()
    assert images.shape == (12, *image_hw, 3)
    for image, blob in zip(images.numpy(), blobs, strict=True):
        way = cv2.INTER_AREA if min(image_hw) < 112 else cv2.INTER_LINEAR
        expected = cv2.resize(by_opencv(blob), image_hw[::-1], interpolation=way)
        assert np.abs(image.astype(int) - expected).mean() < 4


def test_a_process_that_is_killed_leaves_no_file_of_dalis(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        import cv2, numpy as np, torch
        from manyfaces.configs.transforms.misalign import Misalign
        from manyfaces.data.feed.decode import Decoder
        from manyfaces.data.transforms.augmentation import Augmentation
        augmentation = Augmentation((Misalign(p=0.5),), (32, 32))
        decode = Decoder((32, 32), 2, augmentation, device=torch.device("cpu"))
        blob = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].reshape(-1)
        decode([blob, blob], augmentation.draw(0, np.arange(2)))
        assert any(name.startswith("__autograph_generated_file") for name in sys.modules)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == []
