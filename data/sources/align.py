"""Faces upright and in one place: the similarity transform of five landmarks to InsightFace's
112x112 template, as its `norm_crop` does."""

import hashlib
from array import array
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError

TEMPLATE_NAME, TEMPLATE_PX = "arcface-112", 112
# Left eye, right eye, nose, left and right corner of the mouth, as seen in the image (x, y);
# InsightFace `eval_ijbc.py:64-70`.
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)

Points = NDArray[np.float64]


def similarity(points: Points, target: Points) -> Points | None:
    """The 2x3 matrix of the rotation, scale and shift that bring `points` (n x 2) closest to
    `target` in the least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991; never a reflection. None where the points do not span anything.
    """
    mean, target_mean = points.mean(0), target.mean(0)
    centred, target_centred = points - mean, target - target_mean
    variance = (centred**2).sum() / len(points)
    if not np.isfinite(points).all() or variance < 1e-6:
        return None
    u, d, vt = np.linalg.svd(target_centred.T @ centred / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = (d * signs).sum() / variance
    return np.column_stack((scale * rotation, target_mean - scale * rotation @ mean))


def align(pixels_HWC: NDArray[np.uint8], points: Points) -> NDArray[np.uint8] | None:
    """The face at 112x112, bilinear, black outside the image; None where the landmarks span no
    face."""
    matrix = similarity(points, TEMPLATE)
    if matrix is None:
        return None
    aligned: NDArray[np.uint8] = cv2.warpAffine(
        pixels_HWC, matrix, (TEMPLATE_PX, TEMPLATE_PX), flags=cv2.INTER_LINEAR, borderValue=0
    )
    return aligned


class Landmarks:
    """A text file of lines `path_or_key x1 y1 ... x5 y5` (pixels of the source image), at 88 bytes
    a line whatever the names.

    Raises `UserError` naming file:line for a line that is none, and for a name that stands twice.
    """

    def __init__(self, path: Path) -> None:
        values, digests = array("d"), bytearray()
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                name, *numbers = line.rsplit(maxsplit=10)
                try:
                    values.extend([float(n) for n in numbers])
                except ValueError:
                    numbers = []
                if len(numbers) != 10:
                    raise UserError(
                        f"{path}:{number}: expected `path_or_key x1 y1 x2 y2 x3 y3 x4 y4 x5 y5`, "
                        f"got {line.strip()[:80]!r}"
                    )
                digests += _digest(name.strip())
        words = np.frombuffer(bytes(digests), np.uint64)
        order = np.argsort(words, kind="stable")
        self._words, self._points = words[order], np.array(values).reshape(-1, 5, 2)[order]
        if (twice := np.flatnonzero(self._words[1:] == self._words[:-1])).size:
            raise UserError(
                f"{path}: entry {order[twice[0] + 1] + 1} has the name of entry "
                f"{order[twice[0]] + 1}; each image has one line"
            )
        self.sha256 = hashlib.sha256(words.tobytes() + self._points.tobytes()).hexdigest()

    def find(self, *names: str) -> Points | None:
        """Landmarks (5 x 2) of the first of the names that has some."""
        for name in names:
            word = np.frombuffer(_digest(name), np.uint64)[0]
            row = int(np.searchsorted(self._words, word))
            if row < len(self._words) and self._words[row] == word:
                found: Points = self._points[row]
                return found
        return None


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
