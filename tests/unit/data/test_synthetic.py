"""Made identities: the same bytes everywhere, and hard for pixels."""

import hashlib
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from manyfaces.data.synthetic.camera import draw
from manyfaces.data.synthetic.faces import encode, render
from manyfaces.data.synthetic.features import head, mouth, nose
from manyfaces.data.synthetic.traits import conditions, traits

DIGEST = """
import hashlib
from manyfaces.data.synthetic.faces import encode
print(hashlib.sha256(b"".join(encode(7, n, n % 3) for n in range(40))).hexdigest())
"""


def test_another_process_with_other_instructions_makes_the_same_bytes() -> None:
    here = hashlib.sha256(b"".join(encode(7, n, n % 3) for n in range(40))).hexdigest()
    # OpenCV without Intel's library and without AVX2, as on an older machine.
    env = os.environ | {
        "OPENCV_IPP": "disabled",
        "OPENCV_CPU_DISABLE": "AVX2",
        "JSIMD_FORCENONE": "1",
    }
    there = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert there.stdout.strip() == here


def test_each_argument_changes_the_image() -> None:
    images = [render(*arguments) for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({image.tobytes() for image in images}) == 4
    assert render(0, 0, 0).tobytes() == images[0].tobytes()


@pytest.mark.parametrize("px", [64, 112, 113])
def test_size_and_type(px: int) -> None:
    image = render(0, 2**31, 5, px)
    assert image.shape == (px, px, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_jpeg_holds_the_image_in_rgb_order() -> None:
    for identity in range(20):
        decoded = cv2.imdecode(np.frombuffer(encode(0, identity, 0), np.uint8), cv2.IMREAD_COLOR)[
            :, :, ::-1
        ]
        made = render(0, identity, 0)
        assert decoded.shape == made.shape
        # Swapped channels would differ far more than compression does.
        assert np.abs(decoded.mean((0, 1)) - made.mean((0, 1))).max() < 3


def test_traits_belong_to_the_identity_and_conditions_to_the_image() -> None:
    vectors = [str(traits(seed, identity)) for seed in range(3) for identity in range(100)]
    assert len(set(vectors)) == 300
    assert traits(2, 99) == traits(2, 99)
    assert len({str(conditions(0, 0, image)) for image in range(100)}) == 100


def test_blur_is_the_binomial_in_integers() -> None:
    # OpenCV promises it for bytes; if a build rounds in another way, the bytes would depend on the
    # machine.
    image = render(0, 1, 0)
    for weights in ([1, 2, 1], [1, 4, 6, 4, 1]):
        half, total = len(weights) // 2, sum(weights)
        padded = np.pad(
            image.astype(np.int64), ((half, half), (half, half), (0, 0)), mode="reflect"
        )
        rows = sum(w * padded[i : i + 112] for i, w in enumerate(weights))
        both = sum(w * rows[:, i : i + 112] for i, w in enumerate(weights))
        assert np.array_equal(
            cv2.GaussianBlur(image, (len(weights), len(weights)), 0),
            (both + total * total // 2) // (total * total),
        )


def best_accuracy(scores_N: NDArray[np.float64], same_N: NDArray[np.bool_]) -> float:
    """At the best of all thresholds."""
    same_N = same_N[np.argsort(-scores_N)]
    return float((np.cumsum(same_N) + (~same_N).sum() - np.cumsum(~same_N)).max() / len(same_N))


def test_pixels_do_not_tell_identities_apart() -> None:
    same_N = np.arange(400) % 2 == 0
    partners = np.where(same_N, np.arange(400), 400 + np.arange(400))
    pairs = [(render(9, n, 0), render(9, int(m), 1)) for n, m in enumerate(partners)]
    small_N2D = np.array(
        [
            [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).ravel() for image in pair]
            for pair in pairs
        ],
        float,
    )
    for pixels_N2D in (small_N2D, small_N2D - small_N2D.mean(2, keepdims=True)):
        a_ND, b_ND = pixels_N2D[:, 0], pixels_N2D[:, 1]
        cosines_N = (a_ND * b_ND).sum(1) / np.sqrt((a_ND * a_ND).sum(1) * (b_ND * b_ND).sum(1))
        assert best_accuracy(-((a_ND - b_ND) ** 2).sum(1), same_N) < 0.7
        assert best_accuracy(cosines_N, same_N) < 0.7


def test_identities_look_different_once_pose_light_and_backdrop_are_taken_away() -> None:
    # What makes pixels hard is how a face is shown, not that all faces are alike.
    straight = {"scale": 1.0, "roll": 0.0, "x": 0.0, "y": 0.0, "yaw": 0.0, "pitch": 0.0}
    images = np.zeros((200, 2, 112, 112, 3), np.uint8)
    for identity, image in np.ndindex(200, 2):
        face, shot = traits(9, identity), conditions(9, identity, image)
        draw(
            images[identity, image],
            head(face) + nose(face) + mouth(face, shot),
            straight,
        )
    one, other = images.astype(np.int16).swapaxes(0, 1)
    genuine_N, impostor_N = (
        np.abs(one - partner).mean((1, 2, 3)) for partner in (other, np.roll(other, 1, 0))
    )
    assert (
        best_accuracy(-np.concatenate([genuine_N, impostor_N]), np.repeat([True, False], 200))
        > 0.95
    )
