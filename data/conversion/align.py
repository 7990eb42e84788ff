"""Alignment, which brings faces upright and to one place: the similarity transform of five
landmarks to InsightFace's 112x112 template, as its `norm_crop` does."""

import cv2
import numpy as np
from numpy.typing import NDArray

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
"""Positions (x, y) in pixels, [n, 2]."""


def similarity(points: Points, target: Points) -> Points | None:
    """Fit the rotation, scale and shift that bring `points` (n x 2) closest to `target` in the
    least squares; returns the 2x3 matrix.

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
    """Draw the face at 112x112, bilinear, black outside the image; None where the landmarks span no
    face."""
    matrix = similarity(points, TEMPLATE)
    if matrix is None:
        return None
    aligned: NDArray[np.uint8] = cv2.warpAffine(
        pixels_HWC, matrix, (TEMPLATE_PX, TEMPLATE_PX), flags=cv2.INTER_LINEAR, borderValue=0
    )
    return aligned
