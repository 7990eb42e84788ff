"""What is around a face: the backdrop, hair, neck, cloth, ears, glasses, and what covers it."""

from collections.abc import Sequence

import numpy as np

from manyfaces.data.synthetic.colours import FRAMES, hair_of, paint, pick, shade, skin_of
from manyfaces.data.synthetic.shapes import Layer, blob, mirrored, smooth, symmetric
from manyfaces.data.synthetic.traits import Values

_BALD_BELOW = 0.12


def backdrop(u: Sequence[float]) -> list[Layer]:
    """Large patches of colour behind the person, each of six numbers in [0, 1)."""
    layers = []
    for first in range(0, len(u), 6):
        x, y, width, red, square, height = u[first : first + 6]
        patch = blob(x * 130 - 65, y * 130 - 65, 10 + width * 40, 10 + height * 60, square)
        layers.append(Layer(paint((red, square, height)), [patch], dome=0))
    return layers


def behind(face: Values, shot: Values, cloth: Sequence[float]) -> list[Layer]:
    """Long hair, neck, shoulders and ears, all behind the face."""
    shape, skin = face["head"], skin_of(face)
    neck, chin = shape["width"] * (0.4 + shape["jaw"] * 0.35), shape["chin"]
    throat = symmetric((neck, chin * 0.4), (neck + 1, 75))
    shoulders = symmetric((neck * 0.7, chin + 8), (48, chin + 17), (60, 90))
    return [
        *_long_hair(face, shot),
        Layer(shade(skin, 0.76), [throat], lift=-8, dome=0),
        Layer(paint(cloth), [shoulders], lift=-4, dome=0),
        *_ears(face),
    ]


def _long_hair(face: Values, shot: Values) -> list[Layer]:
    hair, shape = face["hair"], face["head"]
    if hair["bald"] <= _BALD_BELOW or hair["long"] <= -0.1:
        return []
    width, low, top = shape["width"] + hair["wide"], 14 + hair["long"] * 48, shape["top"]
    back = smooth(
        symmetric((0, -top), (width * 0.8, -top * 0.8), (width + 1, 0), (width, low), (0, low))
    )
    back[:, 0] += shot["gaze"]["sway"]
    return [Layer(shade(hair_of(face), 0.72), [back], lift=-14, dome=0)]


def _ears(face: Values) -> list[Layer]:
    ear, skin = face["ear"], skin_of(face)
    x, y = face["head"]["width"] + ear["out"], ear["y"]
    size, ring = ear["size"], ear["ring_size"]
    outer = mirrored(blob(x - 1, y, size * 0.62, size, 0, 0.15))
    inner = mirrored(blob(x, y, size * 0.3, size * 0.55))
    layers = [
        Layer(shade(skin, 0.92), outer, lift=-5, dome=0),
        Layer(shade(skin, 0.7), inner, lift=-5, dome=0),
    ]
    if ear["ring"] > 0.75:
        rings = mirrored(blob(x - 1, y + size + ring * 0.6, ring * 0.8, ring))
        layers.append(Layer(pick(FRAMES, ear["ring"] * 4 - 3), rings, lift=-5, dome=0))
    return layers


def hair_and_glasses(face: Values, shot: Values) -> list[Layer]:
    """Hair over the forehead, and glasses."""
    return [*_hair(face, shot), *_glasses(face)]


def _hair(face: Values, shot: Values) -> list[Layer]:
    hair, volume = face["hair"], face["volume"]
    if hair["bald"] <= _BALD_BELOW:
        return []
    width, top = face["head"]["width"], face["head"]["top"]
    side, left, right = volume["side"], volume["left"], volume["right"]
    outer = [
        (-width - 2, side),
        (-width - left, -16),
        (-width * 0.8 - left, -top * 0.85),
        (volume["tilt"], -top - volume["top"]),
        (width * 0.8 + right, -top * 0.85),
        (width + right, -16),
        (width + 2, side),
    ]
    hairline = [
        (width * (0.64 - 0.32 * i) + shot["gaze"]["sway"] * 0.7, y)
        for i, y in enumerate(face["hairline"].values())
    ]
    inner = [(width - 3, side), (width - 4, -14), *hairline, (4 - width, -14), (3 - width, side)]
    points = smooth(np.array([*outer, *inner]))
    # Where hair is curly, every other point of the outline moves out.
    points[::2] *= 1 + max(0.0, hair["curl"])
    return [Layer(hair_of(face), [points], lift=3)]


def _glasses(face: Values) -> list[Layer]:
    glasses, x, y = face["glasses"], face["eye"]["x"], face["eye"]["y"]
    if glasses["worn"] <= 0.68:
        return []
    thick, colour = glasses["thick"] / 2, pick(FRAMES, glasses["colour"])
    rx, ry, square = min(glasses["rx"], x - 2), glasses["ry"], glasses["square"]
    # A polygon inside another is a hole.
    outside = blob(x, y + 1, rx + thick, ry + thick, square)
    inside = blob(x, y + 1, rx - thick, ry - thick, square)
    return [
        Layer(colour, [*mirrored(outside), *mirrored(inside)], lift=5),
        Layer(colour, [blob(0, y, x - rx, thick, 1)], lift=5),
    ]


def covering(face: Values, shot: Values, u: Sequence[float]) -> list[Layer]:
    """What covers a part of the face in a third of the images: dark glasses, a mask, a hat, a patch
    or a patch and a bar."""
    hide, eye, colour = shot["hide"], face["eye"], paint(u)
    kind, x, y, turn = hide["kind"], hide["x"], hide["y"], hide["turn"]
    if kind < 0.05:
        lenses = mirrored(blob(eye["x"], eye["y"] + 1, eye["x"] - 2, 8, hide["square"]))
        return [Layer(shade(colour, 0.3), [*lenses, blob(0, eye["y"], 4, 1.5)], lift=5)]
    if kind < 0.09:
        mask = smooth(symmetric((0, 8), (27, 12), (34, 18), (24, 38), (0, 52)), 1)
        return [Layer(colour, [mask], lift=4)]
    if kind < 0.14:
        brim = -face["head"]["top"] + 12 + hide["rx"] * 0.6
        hat = symmetric((30, -62), (46, brim - 10), (46, brim), (0, brim + 2))
        return [Layer(colour, [hat], lift=4)]
    if kind >= 0.32:
        return []
    layers = [Layer(colour, [blob(x, y, hide["rx"], hide["ry"], hide["square"], turn)], lift=12)]
    if kind >= 0.26:
        layers.append(Layer(paint(u[3:]), [blob(-x, y - 20, 3, 60, 1, turn)], lift=12))
    return layers
