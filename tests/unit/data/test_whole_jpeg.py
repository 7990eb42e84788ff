"""A JPEG is whole when its image is, whatever stands behind its end, and not because its last bytes
are an end marker: in conversion, in the feed and in what is shown to DALI."""

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from manyfaces.data.conversion.pixels import decoded
from manyfaces.data.dataset.sample import jpeg_size, usable_jpeg, whole_jpeg
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.sources.source import Dropped
from manyfaces.data.synthetic.faces import encode

END = b"\xff\xd9"
JPEG = encode(3, 1, 0)
PIXELS = cv2.imdecode(np.frombuffer(JPEG, np.uint8), cv2.IMREAD_COLOR)


def encoded(*options: int) -> bytes:
    return cv2.imencode(".jpg", PIXELS, list(options))[1].tobytes()


PROGRESSIVE = encoded(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
KINDS = {
    "plain": JPEG,
    "progressive": PROGRESSIVE,
    "restarts": encoded(cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "large": cv2.imencode(".jpg", cv2.resize(PIXELS, (700, 500)))[1].tobytes(),
    "gray": cv2.imencode(".jpg", PIXELS[:, :, 0])[1].tobytes(),
    "fill bytes": JPEG[:2] + b"\xff\xff" + JPEG[2:-2] + b"\xff\xff" + END,
    "bytes between segments": JPEG[:20] + b"\0\0" + JPEG[20:],
}
TAILS = {
    "line feed": b"\r\n",
    "zeros": bytes(700),
    "phone": b"\0\0\1\x0a\x0e\0\0\0Image_UTC_Data1600000000000SEFHk\0\0\0\1\0\0\0SEFT",
    "html": b"<!-- cache -->\n",
    "second image": JPEG,
    "noise": np.random.default_rng(0).bytes(20_000),
    "end marker twice": END,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", TAILS)
def test_what_stands_behind_the_end_does_not_matter(kind: str, tail: str) -> None:
    blob = KINDS[kind] + TAILS[tail]
    assert whole_jpeg(blob)
    assert usable_jpeg(np.frombuffer(blob, np.uint8))
    assert np.array_equal(decoded(blob), decoded(KINDS[kind]))


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts"])
def test_no_cut_is_whole(kind: str) -> None:
    blob = KINDS[kind]
    for tail in (b"", *(TAILS[name] for name in ("line feed", "phone", "html", "noise"))):
        assert not any(whole_jpeg(blob[:cut] + tail) for cut in range(len(blob) - 1)), tail


def test_the_end_of_a_thumbnail_in_the_header_is_not_that_of_the_image() -> None:
    exif = b"Exif\0\0" + JPEG
    header = b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif
    whole = JPEG[:2] + header + JPEG[2:]
    assert whole_jpeg(whole)
    cut = whole[: 2 + len(header)]
    assert cut.endswith(END)
    assert not whole_jpeg(cut)


def test_an_end_marker_does_not_make_half_an_image_whole() -> None:
    """Only a decoder sees this; DALI's says nothing, so that a conversion has to."""
    with pytest.raises(Dropped, match="data missing: part of the image is gray"):
        decoded(JPEG[: len(JPEG) // 2] + END)
    with pytest.raises(Dropped, match="cut off"):
        decoded(JPEG[: len(JPEG) // 2] + JPEG)


def test_dali_decodes_what_has_a_tail() -> None:
    def array(blob: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(blob, np.uint8)

    plain = [array(JPEG)] * len(TAILS)
    tailed = [array(JPEG + tail) for tail in TAILS.values()]
    for blobs in (tailed, [*tailed[:2], array(JPEG + TAILS["noise"] * 9), *tailed[3:]]):
        images, good = Decoder((112, 112), len(TAILS), device=torch.device("cpu"))(blobs)
        assert good.all()
        assert torch.equal(
            images, Decoder((112, 112), len(TAILS), device=torch.device("cpu"))(plain)[0]
        )


def test_sizes_of_headers() -> None:
    assert [jpeg_size(KINDS[kind]) for kind in ("plain", "large")] == [(112, 112), (500, 700)]
    assert jpeg_size(JPEG[:100]) is None
    assert jpeg_size(b"") is None


@pytest.mark.parametrize("suffix", [".webp", ".tiff", ".gif", ".bmp", ".ppm", ".jp2"])
def test_other_formats_are_decoded_and_their_cuts_and_giants_are_not(suffix: str) -> None:
    blob = cv2.imencode(suffix, PIXELS)[1].tobytes()
    assert decoded(blob).shape == (112, 112, 3)
    with pytest.raises(Dropped, match="not a decodable image"):
        decoded(blob[: len(blob) // 2])
    huge = {
        ".tiff": cv2.imencode(".tiff", np.zeros((9000, 9000), np.uint8)),
        ".gif": (True, np.frombuffer(blob[:6] + b"\xff\xff\xff\xff" + blob[10:], np.uint8)),
        ".ppm": (True, np.frombuffer(b"P6\n99999 9999\n255\n", np.uint8)),
    }
    if suffix in huge:
        with pytest.raises(Dropped, match="more than 67,108,864 pixels"):
            decoded(huge[suffix][1].tobytes())
