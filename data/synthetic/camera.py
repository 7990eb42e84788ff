"""How layers become a picture: turned, projected and painted, then exposed.

Its bytes are the same on any machine: geometry uses only + - * / and sqrt, which IEEE rounds alike
everywhere (no pow, no matmul, sines from a rounded table), and is rounded to 1/8 pixel before
OpenCV draws it in fixed point; light, blur and noise are integer arithmetic.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import words
from manyfaces.data.synthetic.shapes import Array, Layer
from manyfaces.data.synthetic.traits import Values

Image = NDArray[np.uint8]

FRAME_PX = 112
HEAD_Y = 2.0
"""The middle of the head stands this much below the middle of the frame."""
DOME = (40.0, 50.0, 30.0)
"""Half axes of the ellipsoid that carries the features: turning the head moves them by their
depth."""
SUBPIXEL_BITS = 3
NOISE_COUNTER = 1 << 20
"""Where the image's stream turns to noise: far beyond its other numbers."""


def draw(canvas: Image, layers: Sequence[Layer], pose: dict[str, float]) -> None:
    """Turn, project and paint all layers, from the back to the front."""
    polygons = [polygon for layer in layers for polygon in layer.polygons]
    lengths = [len(polygon) for polygon in polygons]
    depths = [(layer.lift, layer.dome) for layer in layers for _ in layer.polygons]
    points = _projected(np.concatenate(polygons), np.repeat(depths, lengths, axis=0), pose)
    px, one = len(canvas), 1 << SUBPIXEL_BITS
    points = np.rint((points / FRAME_PX + 0.5) * (px * one) - one // 2).astype(np.int32)
    start = 0
    for layer in layers:
        parts = []
        for polygon in layer.polygons:
            parts.append(points[start : start + len(polygon)])
            start += len(polygon)
        cv2.fillPoly(canvas, parts, layer.colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _projected(points_N2: Array, depths_N2: Array, pose: dict[str, float]) -> Array:
    """Where points of the head are in the frame once it is turned. Depths are (lift, dome) of each
    point's layer."""
    x, y = points_N2.T
    lift, dome = depths_N2.T
    u, v = x / DOME[0], y / DOME[1]
    z = lift + dome * DOME[2] * np.sqrt(np.maximum(0, 1 - u * u - v * v))
    cos, sin = _cos_sin(pose["yaw"])
    x, z = x * cos + z * sin, z * cos - x * sin
    cos, sin = _cos_sin(pose["pitch"])
    y = y * cos + z * sin
    cos, sin = _cos_sin(pose["roll"])
    x, y = x * cos - y * sin, x * sin + y * cos
    scale = pose["scale"]
    return np.stack([x * scale + pose["x"], y * scale + pose["y"] + HEAD_Y], 1)


def _cos_sin(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of an angle from the tangent of its half. Machines round this alike, which
    they do not promise for a cosine."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def expose(canvas: Image, shot: Values, stream_key: int) -> Image:
    """Apply tone curve, colour cast, directional light, blur and noise, all in integers."""
    light, camera = shot["light"], shot["camera"]
    if light["gray"] < 0.08:
        weighted = canvas.astype(np.uint16) * np.array([77, 150, 29], np.uint16)
        gray = weighted.sum(2, dtype=np.uint16) >> 8
        canvas = np.repeat(gray.astype(np.uint8)[:, :, None], 3, 2)
    ramp = np.arange(256)
    tone = ramp + ramp * (255 - ramp) * int(light["curve"] * 128) // (255 * 128)
    channels = [np.minimum(tone * int(gain * 256) // 256, 255) for gain in shot["cast"].values()]
    canvas = cv2.LUT(canvas, np.stack(channels, 1).astype(np.uint8)[:, None])
    canvas = _lit(canvas, light)
    size = (0, 0, 3, 3, 3, 5)[int(camera["blur"] * 6)]
    if size:
        canvas = cv2.GaussianBlur(canvas, (size, size), 0)
    return _noisy(canvas, int(camera["noise"] * camera["noise"] * 30), stream_key)


def _lit(canvas: Image, light: dict[str, float]) -> Image:
    """Light the image from one direction. The field of light has 7 fractional bits; a deep shadow
    is a steep ramp, cut at both ends."""
    px = len(canvas)
    steep = 192 if light["shadow"] < 0.2 else 58
    middle = np.arange(px) * 2 - px
    across = middle * int(light["x"] * steep) // px
    down = middle * int(light["y"] * steep) // px
    slope = np.maximum(np.minimum(down[:, None] + np.repeat(across, 3), 60), -60)
    field = slope + int(118 + light["level"] * 34)
    lit = canvas.reshape(px, px * 3).astype(np.uint16) * field.astype(np.uint16) >> 7
    bright: Image = np.minimum(lit, 255).astype(np.uint8).reshape(px, px, 3)
    return bright


def _noisy(canvas: Image, strength: int, stream_key: int) -> Image:
    """Add noise of the stream, a byte a value."""
    counters = np.arange(NOISE_COUNTER, NOISE_COUNTER + (canvas.size + 7) // 8, dtype=np.uint64)
    # Little-endian by name, so that the bytes come in one order everywhere.
    random_bytes = words(stream_key, counters).astype("<u8", copy=False).view(np.uint8)
    grain = random_bytes[: canvas.size].astype(np.int16)
    noisy = canvas.reshape(-1) + ((grain - 128) * strength >> 7)
    return np.maximum(np.minimum(noisy, 255), 0).astype(np.uint8).reshape(canvas.shape)
