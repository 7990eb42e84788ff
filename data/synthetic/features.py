"""The parts of a face itself: head, nose, mouth and eyes."""

import numpy as np

from manyfaces.data.synthetic.colours import IRISES, LIPS, hair_of, mix, pick, shade, skin_of
from manyfaces.data.synthetic.shapes import Layer, blob, mirrored, smooth, symmetric
from manyfaces.data.synthetic.traits import Values

_PUPIL, _EYE_WHITE, _LASHES = (10, 10, 12), (246, 244, 240), (34, 24, 26)
_MOUTH_INSIDE, _TEETH = (70, 20, 26), (240, 236, 226)


def head(face: Values) -> list[Layer]:
    """The head and what lies flat on it: blush, freckles, beard, a mole."""
    shape, skin = face["head"], skin_of(face)
    width, chin, top = shape["width"], shape["chin"], shape["top"]
    jaw = [
        (width * shape["cheek"], 14.0),
        (width * shape["jaw"], chin * 0.7),
        (width * shape["chin_width"], chin * 0.99),
    ]
    skull = [(0, -top), (width * 0.66, -top * 0.93), (width * 0.97, -top * 0.5), (width, -2)]
    outline = smooth(symmetric(*skull, *jaw, (0, chin)))
    return [
        Layer(skin, [outline], dome=0),
        *_blush_and_freckles(face),
        *_beard(face, jaw),
        *_mole(face),
    ]


def _blush_and_freckles(face: Values) -> list[Layer]:
    marks, skin, layers = face["skin"], skin_of(face), []
    if marks["blush"] > 0.7:
        red = mix(skin, (220, 70, 70), marks["blush"] - 0.55)
        layers.append(Layer(red, mirrored(blob(face["head"]["width"] * 0.56, 12, 7, 5))))
    if marks["freckles"] > 0.65:
        places = list(face["freckle"].values())[: 2 * int(marks["freckles"] * 10)]
        spots = [blob(x, y, 1.1, 1.1) for x, y in zip(places[::2], places[1::2], strict=True)]
        layers.append(Layer(mix(skin, (110, 60, 30), 0.5), spots))
    return layers


def _beard(face: Values, jaw: list[tuple[float, float]]) -> list[Layer]:
    beard, shape = face["beard"], face["head"]
    if beard["kind"] <= 0.62:
        return []
    # A goatee around the chin or a full beard along the jaw.
    reach = 0.45 if beard["kind"] < 0.75 else 1.0
    edge = [
        (beard["gap"] * reach, beard["top"] + 6),
        (shape["width"] * 0.7 * reach, beard["top"]),
        *((x * reach, y) for x, y in jaw),
        (0, shape["chin"] + 3),
    ]
    colour = mix(skin_of(face), hair_of(face), beard["ink"])
    return [Layer(colour, [smooth(symmetric(*edge), 1)], dome=0.5)]


def _mole(face: Values) -> list[Layer]:
    marks = face["skin"]
    if marks["mole"] <= 0.6:
        return []
    size = marks["mole"] * 4 - 1.6
    spot = blob(marks["mole_x"], marks["mole_y"], size, size)
    return [Layer(mix(skin_of(face), (50, 26, 20), 0.8), [spot])]


def nose(face: Values) -> list[Layer]:
    """The nose: a ridge with one side in shade, two wings, the tip and the nostrils."""
    shape, eye_y, skin = face["nose"], face["eye"]["y"], skin_of(face)
    y, wing, bridge, tip = shape["y"], shape["wing"], shape["bridge"], shape["tip"]
    out, hole = shape["out"], shape["hole"]
    ridge = np.array(
        [
            (bridge * 0.3, eye_y + 1),
            (bridge, eye_y + 3),
            (wing, y - 1),
            (wing * 0.8, y + tip * 0.6),
            (0, y + tip),
        ]
    )
    side = 1 if shape["side"] > 0 else -1
    wings = mirrored(blob(wing * 0.62, y + 0.6, wing * 0.4, tip * 0.7))
    nostrils = mirrored(blob(wing * 0.45, y + tip * 0.6, hole, hole * 0.6, 0, -0.3))
    return [
        Layer(shade(skin, 0.82), [ridge * (side, 1)], lift=out * 0.6),
        Layer(shade(skin, 0.88), wings, lift=out * 0.6),
        Layer(shade(skin, 1.05), [blob(0, y - 0.5, wing * 0.62, tip)], lift=out),
        Layer(shade(skin, 0.4), nostrils, lift=out * 0.8),
    ]


def mouth(face: Values, shot: Values) -> list[Layer]:
    """The mouth, more or less open, with a moustache in some faces."""
    shape, mood = face["mouth"], shot["face"]
    y, rx, opening = shape["y"], shape["rx"] * mood["wide"], max(0.8, mood["open"])
    corner = y - shape["curve"] - mood["smile"]
    upper, lower, bow = y - shape["upper"], y + opening + shape["lower"], shape["bow"] / 2
    lips = symmetric(
        (0, upper + bow),
        (rx * 0.3, upper - bow),
        (rx, corner),
        (rx * 0.5, lower - shape["lower"] * 0.1),
        (0, lower),
    )
    middle = (corner + y) / 2
    inside = symmetric(
        (0, y), (rx * 0.85, middle), (rx * 0.45, y + opening * 0.9), (0, y + opening)
    )
    layers = [
        *_moustache(face, rx, upper),
        Layer(pick(LIPS, shape["colour"]), [smooth(lips, 1)]),
        Layer(_MOUTH_INSIDE, [inside]),
    ]
    if opening > 2:
        teeth = symmetric((rx * 0.6, middle + 0.3), (rx * 0.5, y + opening * 0.4))
        layers.append(Layer(_TEETH, [teeth]))
    return layers


def _moustache(face: Values, rx: float, upper: float) -> list[Layer]:
    """A moustache over an upper lip at the height `upper` of a mouth of half width `rx`."""
    beard = face["beard"]
    if beard["moustache"] <= 0.72:
        return []
    hair = symmetric(
        (0, upper - beard["thick"]),
        (rx * 0.7, upper - beard["thick"] * 0.7),
        (rx * 1.05, face["mouth"]["y"] + beard["droop"]),
        (0, upper),
    )
    return [Layer(hair_of(face), [smooth(hair, 1)], lift=2)]


def eyes(face: Values, shot: Values) -> list[Layer]:
    """Eyes and brows."""
    eye, iris, gaze, mood = face["eye"], face["iris"], shot["gaze"], shot["face"]
    x, y, rx, ry, lash = eye["x"], eye["y"], eye["rx"], eye["ry"] * mood["eyes"], iris["lash"]
    layers = []
    if iris["bags"] > 0.6:
        bags = mirrored(blob(x, y + eye["ry"] * 0.9, rx, 2.6))
        layers.append(Layer(shade(skin_of(face), 0.8), bags))
    lids = blob(x, y - lash * 0.7, rx + lash * 0.6, ry + lash * 0.5, eye["square"], eye["slant"])
    layers.append(Layer(_LASHES, mirrored(lids)))
    white = blob(x, y, rx, ry, eye["square"], eye["slant"])
    layers.append(Layer(_EYE_WHITE, mirrored(white)))
    width, height = min(iris["size"], rx), min(iris["size"], ry)
    look_y = y + gaze["y"] * mood["eyes"] * 0.6
    for share, colour in ((1.0, pick(IRISES, iris["colour"])), (0.47, _PUPIL)):
        # Both eyes look the same way, so that these are not mirrored.
        discs = [
            blob(gaze["x"] + side * x, look_y, width * share, height * share) for side in (-1, 1)
        ]
        layers.append(Layer(colour, discs))
    return [*layers, _brows(face, shot)]


def _brows(face: Values, shot: Values) -> Layer:
    eye, brow, mood = face["eye"], face["brow"], shot["face"]
    half, thick, arch = brow["length"], brow["thick"], brow["arch"]
    x, y = eye["x"] + brow["in"], eye["y"] - eye["ry"] - brow["gap"] - mood["brows"]
    lean = (brow["slant"] + mood["frown"]) * half
    upper = [(x - half, y + lean), (x, y - arch), (x + half, y - lean)]
    lower = [
        (x + half, y - lean + thick * 0.3),
        (x, y - arch + thick),
        (x - half, y + lean + thick),
    ]
    return Layer(shade(hair_of(face), brow["shade"]), mirrored(np.array(upper + lower)), lift=1)
