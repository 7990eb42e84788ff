"""Cartoon faces that a recogniser can learn: an image is a pure function of (seed, identity,
image), and its bytes are the same on any machine (see `camera`)."""

import cv2
import numpy as np

from manyfaces.configs.rng import key, uniform
from manyfaces.data.synthetic.camera import FRAME_PX, Image, draw, expose
from manyfaces.data.synthetic.colours import paint
from manyfaces.data.synthetic.features import eyes, head, mouth, nose
from manyfaces.data.synthetic.surroundings import backdrop, behind, covering, hair_and_glasses
from manyfaces.data.synthetic.traits import PICTURE_STREAM, QUALITY_STREAM, conditions, traits

_STRAIGHT = {"scale": 1.0, "roll": 0.0, "x": 0.0, "y": 0.0, "yaw": 0.0, "pitch": 0.0}
"""The pose of the backdrop."""


def render(seed: int, identity: int, image: int, px: int = FRAME_PX) -> Image:
    """Draw one image, RGB [px, px, 3]."""
    face, shot = traits(seed, identity), conditions(seed, identity, image)
    stream_key = key(seed, PICTURE_STREAM, identity, image)
    scene = uniform(stream_key, np.arange(36, dtype=np.uint64)).tolist()
    wall, patches, cloth, cover = scene[:3], scene[3:27], scene[27:30], scene[30:36]
    canvas = np.empty((px, px, 3), np.uint8)
    canvas[:] = paint(wall)
    draw(canvas, backdrop(patches), _STRAIGHT)
    layers = [
        *behind(face, shot, cloth),
        *head(face),
        *nose(face),
        *mouth(face, shot),
        *eyes(face, shot),
        *hair_and_glasses(face, shot),
        *covering(face, shot, cover),
    ]
    draw(canvas, layers, shot["pose"])
    return expose(canvas, shot, stream_key)


def encode(seed: int, identity: int, image: int) -> bytes:
    """Draw one image and return it as JPEG bytes."""
    quality = 50 + key(seed, QUALITY_STREAM, identity, image) % 47
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    written, data = cv2.imencode(".jpg", render(seed, identity, image)[:, :, ::-1], options)
    assert written
    return bytes(data)
