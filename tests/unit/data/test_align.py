"""The similarity transform against known transforms and the linear least squares; landmark
files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.align import TEMPLATE, align, similarity
from manyfaces.data.conversion.landmarks import Landmarks

numbers = st.floats(-200, 200)


def moved(
    points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]
) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


@given(st.floats(-180, 180), st.floats(0.05, 20), st.tuples(numbers, numbers))
def test_a_known_transform_is_found(
    degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    points = moved(TEMPLATE, degrees, scale, shift)
    matrix = similarity(points, TEMPLATE)
    assert matrix is not None
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=5, max_size=5), st.floats(-180, 180))
def test_no_similarity_is_nearer(noise: list[tuple[float, float]], degrees: float) -> None:
    """The least squares over all scaled rotations, solved in their linear form [a -b; b a]."""
    points = moved(TEMPLATE, degrees, 2, (30, 40)) + np.array(noise) * 0.2
    x, y, ones, zeros = points[:, 0], points[:, 1], np.ones(5), np.zeros(5)
    rows = np.concatenate(
        [np.column_stack((x, -y, ones, zeros)), np.column_stack((y, x, zeros, ones))]
    )
    (a, b, *shift), *_ = np.linalg.lstsq(rows, TEMPLATE.T.ravel(), rcond=None)
    matrix = similarity(points, TEMPLATE)
    assert matrix is not None
    np.testing.assert_allclose(matrix, np.column_stack(([[a, -b], [b, a]], shift)), atol=1e-6)


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    matrix = similarity(TEMPLATE * (-1, 1), TEMPLATE)
    assert matrix is not None
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), 7.0), TEMPLATE * np.nan])
def test_landmarks_that_span_nothing(points: np.ndarray) -> None:
    assert similarity(points, TEMPLATE) is None
    assert align(np.zeros((50, 50, 3), np.uint8), points) is None


def test_dots_land_on_the_template() -> None:
    points = moved(TEMPLATE, -25, 2.5, (90, 160))
    canvas = np.zeros((600, 600, 3), np.uint8)
    for x, y in points:
        cv2.circle(canvas, (round(x), round(y)), 5, (255, 255, 255), -1)
    face = align(canvas, points)
    assert face is not None
    assert face.shape == (112, 112, 3)
    _, _, _, centres = cv2.connectedComponentsWithStats((face[..., 0] > 127).astype(np.uint8))
    np.testing.assert_allclose(sorted(centres[1:].tolist()), sorted(TEMPLATE.tolist()), atol=0.5)


def test_landmark_files(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.txt"
    path.write_text(
        "person 1/a b.jpg 1 2 3 4 5 6 7 8 9 10\n\nb.jpg\t" + "\t".join(["0.5"] * 10) + "\n"
    )
    landmarks = Landmarks(path)
    found = landmarks.find("nothing", "person 1/a b.jpg")
    assert found is not None
    assert found.ravel().tolist() == list(range(1, 11))
    assert landmarks.find("c.jpg") is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a 1 2 3 4 5 6 7 8 9 10\nb 1 2 3\n", r"landmarks.txt:2: expected `path_or_key x1 y1"),
        ("a 1 2 3 4 5 6 7 8 9 x\n", r"landmarks.txt:1: expected"),
        ("a 1 2 3 4 5 6 7 8 9 10\n" * 2, "entry 2 has the name of entry 1"),
    ],
)
def test_landmark_files_that_are_none(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "landmarks.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        Landmarks(path)
