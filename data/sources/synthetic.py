"""Made identities: cartoon faces that a recogniser can learn, for demos and tests where no real
face may go.

A face is drawn from two sets of uniform numbers, the identity's traits and the image's conditions;
both come from `configs.counter`, so an image is a pure function of (seed, identity, image). Its
bytes are the same on any machine: geometry uses only + - * / and sqrt, which IEEE rounds alike
everywhere (no pow, no matmul, sines from a rounded table), and is rounded to 1/8 pixel before
OpenCV draws it in fixed point; light, blur and noise are integer arithmetic.

Lengths are in pixels of a 112 px frame from the middle of the head: x right, y down, z towards the
viewer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.rng import key, uniform, words

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Ranges = dict[str, dict[str, tuple[float, float]]]
Values = dict[str, dict[str, float]]

FRAME_PX = 112
HEAD_Y = 2.0
"""The middle of the head stands this much below the middle of the frame."""
DOME = (40.0, 50.0, 30.0)
"""Half axes of the ellipsoid that carries the features: turning the head moves them by their
depth."""
SUBPIXEL_BITS = 3
NOISE_COUNTER = 1 << 20
"""Where the image's stream turns to noise: far beyond its other numbers."""

# Uniform ranges. Their order is the counter: append only, or all faces change. Those of (0, 1)
# choose among kinds.
TRAITS: Ranges = {
    "head": {
        "width": (28, 40),
        "cheek": (0.86, 1.06),
        "jaw": (0.6, 1),
        "chin_width": (0.12, 0.65),
        "chin": (38, 51),
        "top": (38, 47),
    },
    "skin": {
        "tone": (0, 1),
        "hue": (-16, 16),
        "blush": (0, 1),
        "freckles": (0, 1),
        "mole": (0, 1),
        "mole_x": (-26, 26),
        "mole_y": (6, 34),
    },
    "ear": {"size": (4, 11), "y": (-6, 8), "out": (-1, 5), "ring": (0, 1), "ring_size": (1.5, 4)},
    "eye": {
        "x": (11, 19),
        "y": (-14, -2),
        "rx": (4.2, 9),
        "ry": (1.8, 5.5),
        "slant": (-0.4, 0.4),
        "square": (-0.3, 0.5),
    },
    "iris": {"size": (2, 4.4), "colour": (0, 1), "bags": (0, 1), "lash": (0.4, 2.4)},
    "brow": {
        "gap": (2.5, 8),
        "thick": (1, 5),
        "length": (5, 11),
        "slant": (-0.5, 0.5),
        "arch": (0, 4),
        "in": (-3, 3),
        "shade": (0.3, 1),
    },
    "nose": {
        "y": (5, 17),
        "wing": (3.2, 10),
        "tip": (2, 5.5),
        "bridge": (0.5, 4),
        "hole": (0.6, 2.4),
        "out": (3, 12),
        "side": (-1, 1),
    },
    "mouth": {
        "y": (21, 32),
        "rx": (6, 17),
        "upper": (0.8, 4.2),
        "lower": (1, 6),
        "curve": (-3, 3),
        "bow": (0, 2),
        "colour": (0, 1),
    },
    "hair": {
        "bald": (0, 1),
        "colour": (0, 1),
        "shade": (0.6, 1.1),
        "long": (-1, 1),
        "wide": (0, 13),
        "curl": (-0.1, 0.1),
    },
    "volume": {
        "left": (1, 12),
        "top": (1, 14),
        "right": (1, 12),
        "tilt": (-9, 9),
        "side": (-14, 20),
    },
    "hairline": {
        "far_left": (-38, -15),
        "left": (-38, -15),
        "middle": (-38, -15),
        "right": (-38, -15),
        "far_right": (-38, -15),
    },
    "beard": {
        "kind": (0, 1),
        "top": (4, 26),
        "gap": (4, 10),
        "ink": (0.35, 1),
        "moustache": (0, 1),
        "thick": (1.5, 5),
        "droop": (-2, 6),
    },
    "glasses": {
        "worn": (0, 1),
        "rx": (7, 13),
        "ry": (5, 11),
        "square": (-0.1, 0.9),
        "colour": (0, 1),
        "thick": (0.8, 2.4),
    },
    "freckle": {
        f"{axis}{i}": (-22, 22) if axis == "x" else (2, 20) for i in range(10) for axis in "xy"
    },
}
CONDITIONS: Ranges = {
    "pose": {
        "roll": (-0.1, 0.1),
        "x": (-5, 5),
        "y": (-5, 5),
        "scale": (0.94, 1.16),
        "yaw": (-0.2, 0.2),
        "pitch": (-0.12, 0.12),
    },
    "face": {
        "smile": (-3, 4),
        "open": (-5, 8),
        "wide": (0.85, 1.15),
        "eyes": (0.35, 1.2),
        "brows": (-2, 3),
        "frown": (-0.2, 0.2),
    },
    "gaze": {"x": (-2, 2), "y": (-1.2, 1.2), "sway": (-2.5, 2.5)},
    "light": {
        "x": (-1, 1),
        "y": (-1, 1),
        "shadow": (0, 1),
        "level": (-1, 1),
        "curve": (-0.7, 0.7),
        "gray": (0, 1),
    },
    "cast": {"red": (0.74, 1.26), "green": (0.78, 1.22), "blue": (0.7, 1.3)},
    "hide": {
        "kind": (0, 1),
        "x": (-30, 30),
        "y": (-30, 38),
        "rx": (5, 14),
        "ry": (5, 14),
        "turn": (-0.6, 0.6),
        "square": (-0.2, 1),
    },
    "camera": {"blur": (0, 1), "noise": (0, 1)},
}
SKINS = ((255, 226, 205), (240, 196, 164), (214, 160, 120), (168, 114, 80), (104, 68, 50))
HAIRS = (
    (28, 24, 26),
    (66, 42, 30),
    (118, 72, 40),
    (160, 62, 34),
    (216, 112, 44),
    (230, 188, 104),
    (238, 226, 200),
    (110, 126, 144),
)
IRISES = ((52, 32, 22), (108, 66, 32), (70, 120, 70), (60, 110, 180), (120, 140, 150), (30, 24, 24))
LIPS = ((196, 96, 96), (168, 76, 84), (204, 40, 60), (140, 60, 70), (220, 128, 120), (120, 50, 90))
FRAMES = (
    (24, 24, 28),
    (120, 60, 30),
    (190, 30, 40),
    (40, 70, 160),
    (200, 190, 160),
    (230, 230, 235),
)


def traits(seed: int, identity: int) -> Values:
    """What an identity looks like, the same in all its images."""
    return _draws(TRAITS, key(seed, 1, identity))


def conditions(seed: int, identity: int, image: int) -> Values:
    """How one image was taken."""
    return _draws(CONDITIONS, key(seed, 2, identity, image))


def render(seed: int, identity: int, image: int, px: int = FRAME_PX) -> Image:
    """One image, RGB [px, px, 3]."""
    face, shot = traits(seed, identity), conditions(seed, identity, image)
    stream_key = key(seed, 3, identity, image)
    scene = uniform(stream_key, np.arange(36, dtype=np.uint64)).tolist()
    canvas = np.empty((px, px, 3), np.uint8)
    canvas[:] = _paint(scene[:3])
    _draw(
        canvas,
        _backdrop(scene[3:27]),
        {"scale": 1.0, "roll": 0.0, "x": 0.0, "y": 0.0, "yaw": 0.0, "pitch": 0.0},
    )
    layers = (
        _behind(face, shot, scene[27:30])
        + _head(face)
        + _nose(face)
        + _mouth(face, shot)
        + _eyes(face, shot)
        + _top(face, shot)
    )
    _draw(canvas, layers + _hiding(face, shot, scene[30:36]), shot["pose"])
    return _expose(canvas, shot, stream_key)


def encode(seed: int, identity: int, image: int) -> bytes:
    """One image as JPEG bytes."""
    quality = 50 + key(seed, 4, identity, image) % 47
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    written, data = cv2.imencode(".jpg", render(seed, identity, image)[:, :, ::-1], options)
    assert written
    return bytes(data)


def _draws(ranges: Ranges, stream_key: int) -> Values:
    numbers = iter(
        uniform(stream_key, np.arange(sum(map(len, ranges.values())), dtype=np.uint64)).tolist()
    )
    return {
        group: {name: lo + (hi - lo) * next(numbers) for name, (lo, hi) in names.items()}
        for group, names in ranges.items()
    }


# Shapes and colours.


class Layer(NamedTuple):
    """Polygons [N, 2] of one colour; layers are drawn from the back to the front."""

    colour: Colour
    polygons: Sequence[Array]
    lift: float = 0.0
    """Depth beyond the dome, or from the head's middle where `dome` is 0."""
    dome: float = 1.0


_ANGLES = np.arange(16) * (np.pi / 8)
# Rounded, so that no machine's sine shows.
CIRCLE_N2: Array = np.round(np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1), 6)
SQUARE_N2: Array = np.round(CIRCLE_N2 / np.abs(CIRCLE_N2).max(1, keepdims=True), 6)


def _blob(
    x: float, y: float, rx: float, ry: float, square: float = 0.0, slant: float = 0.0
) -> Array:
    """An ellipse; `square` 1 makes it a rectangle and below 0 pinches it, `slant` raises its right
    end."""
    points = (CIRCLE_N2 * (1 - square) + SQUARE_N2 * square if square else CIRCLE_N2) * (rx, ry)
    points[:, 1] += y - points[:, 0] * slant
    points[:, 0] += x
    return points


def _smooth(points: Array, rounds: int = 2) -> Array:
    """Chaikin's corner cutting of a closed polygon."""
    for _ in range(rounds):
        after = np.concatenate([points[1:], points[:1]])
        points = np.stack([points * 0.75 + after * 0.25, points * 0.25 + after * 0.75], 1).reshape(
            -1, 2
        )
    return points


def _both(*right: tuple[float, float]) -> Array:
    """A symmetric polygon from its right half, top to bottom."""
    return np.array([*right, *((-x, y) for x, y in reversed(right))])


def _mirrored(polygon: Array) -> list[Array]:
    return [polygon, polygon * (-1, 1)]


def _mix(a: Colour, b: Colour, weight: float) -> Colour:
    return (
        int(a[0] + (b[0] - a[0]) * weight),
        int(a[1] + (b[1] - a[1]) * weight),
        int(a[2] + (b[2] - a[2]) * weight),
    )


def _shade(colour: Colour, factor: float) -> Colour:
    return (
        min(255, int(colour[0] * factor)),
        min(255, int(colour[1] * factor)),
        min(255, int(colour[2] * factor)),
    )


def _pick(colours: Sequence[Colour], u: float) -> Colour:
    """From the palette, between neighbours."""
    place = u * (len(colours) - 1)
    return _mix(colours[int(place)], colours[int(place) + 1], place - int(place))


def _paint(u: Sequence[float]) -> Colour:
    """Any colour, of cloth or walls."""
    return (int(20 + u[0] * 220), int(20 + u[1] * 220), int(20 + u[2] * 220))


def _skin(face: Values) -> Colour:
    red, green, blue = _pick(SKINS, face["skin"]["tone"])
    hue = int(face["skin"]["hue"])
    return (red, min(255, green + hue // 3), max(0, min(255, blue - hue)))


def _hair(face: Values) -> Colour:
    return _shade(_pick(HAIRS, face["hair"]["colour"]), face["hair"]["shade"])


# The parts of a picture.


def _backdrop(u: Sequence[float]) -> list[Layer]:
    """Large patches."""
    patches = [u[i : i + 6] for i in range(0, len(u), 6)]
    return [
        Layer(
            _paint(v[3:]),
            [_blob(v[0] * 130 - 65, v[1] * 130 - 65, 10 + v[2] * 40, 10 + v[5] * 60, v[4])],
            dome=0,
        )
        for v in patches
    ]


def _behind(face: Values, shot: Values, cloth: Sequence[float]) -> list[Layer]:
    """Long hair, neck, shoulders, ears."""
    head, hair, ear, skin = face["head"], face["hair"], face["ear"], _skin(face)
    layers = []
    if hair["bald"] > 0.12 and hair["long"] > -0.1:
        width, low, top = head["width"] + hair["wide"], 14 + hair["long"] * 48, head["top"]
        back = _smooth(
            _both((0, -top), (width * 0.8, -top * 0.8), (width + 1, 0), (width, low), (0, low))
        )
        back[:, 0] += shot["gaze"]["sway"]
        layers.append(Layer(_shade(_hair(face), 0.72), [back], lift=-14, dome=0))
    neck, chin, x = (
        head["width"] * (0.4 + head["jaw"] * 0.35),
        head["chin"],
        head["width"] + ear["out"],
    )
    layers.append(
        Layer(_shade(skin, 0.76), [_both((neck, chin * 0.4), (neck + 1, 75))], lift=-8, dome=0)
    )
    layers.append(
        Layer(
            _paint(cloth),
            [_both((neck * 0.7, chin + 8), (48, chin + 17), (60, 90))],
            lift=-4,
            dome=0,
        )
    )
    y, size, ring = ear["y"], ear["size"], ear["ring_size"]
    layers.append(
        Layer(
            _shade(skin, 0.92),
            _mirrored(_blob(x - 1, y, size * 0.62, size, 0, 0.15)),
            lift=-5,
            dome=0,
        )
    )
    layers.append(
        Layer(_shade(skin, 0.7), _mirrored(_blob(x, y, size * 0.3, size * 0.55)), lift=-5, dome=0)
    )
    if ear["ring"] > 0.75:
        rings = _mirrored(_blob(x - 1, y + size + ring * 0.6, ring * 0.8, ring))
        layers.append(Layer(_pick(FRAMES, ear["ring"] * 4 - 3), rings, lift=-5, dome=0))
    return layers


def _head(face: Values) -> list[Layer]:
    """The head and what lies flat on it: blush, freckles, beard, a mole."""
    head, marks, beard, skin = face["head"], face["skin"], face["beard"], _skin(face)
    w, chin, top = head["width"], head["chin"], head["top"]
    jaw = [
        (w * head["cheek"], 14.0),
        (w * head["jaw"], chin * 0.7),
        (w * head["chin_width"], chin * 0.99),
    ]
    layers = [
        Layer(
            skin,
            [
                _smooth(
                    _both(
                        (0, -top),
                        (w * 0.66, -top * 0.93),
                        (w * 0.97, -top * 0.5),
                        (w, -2),
                        *jaw,
                        (0, chin),
                    )
                )
            ],
            dome=0,
        )
    ]
    if marks["blush"] > 0.7:
        layers.append(
            Layer(
                _mix(skin, (220, 70, 70), marks["blush"] - 0.55),
                _mirrored(_blob(w * 0.56, 12, 7, 5)),
            )
        )
    if marks["freckles"] > 0.65:
        places = list(face["freckle"].values())[: 2 * int(marks["freckles"] * 10)]
        spots = [_blob(x, y, 1.1, 1.1) for x, y in zip(places[::2], places[1::2], strict=True)]
        layers.append(Layer(_mix(skin, (110, 60, 30), 0.5), spots))
    if beard["kind"] > 0.62:
        # A goatee around the chin or a full beard along the jaw.
        reach = 0.45 if beard["kind"] < 0.75 else 1.0
        edge = [
            (beard["gap"] * reach, beard["top"] + 6),
            (w * 0.7 * reach, beard["top"]),
            *((x * reach, y) for x, y in jaw),
        ]
        layers.append(
            Layer(
                _mix(skin, _hair(face), beard["ink"]),
                [_smooth(_both(*edge, (0, chin + 3)), 1)],
                dome=0.5,
            )
        )
    if marks["mole"] > 0.6:
        size = marks["mole"] * 4 - 1.6
        layers.append(
            Layer(
                _mix(skin, (50, 26, 20), 0.8), [_blob(marks["mole_x"], marks["mole_y"], size, size)]
            )
        )
    return layers


def _nose(face: Values) -> list[Layer]:
    nose, top, skin = face["nose"], face["eye"]["y"], _skin(face)
    y, wing, bridge, tip, out = nose["y"], nose["wing"], nose["bridge"], nose["tip"], nose["out"]
    # One side of the ridge lies in shade.
    ridge = np.array(
        [
            (bridge * 0.3, top + 1),
            (bridge, top + 3),
            (wing, y - 1),
            (wing * 0.8, y + tip * 0.6),
            (0, y + tip),
        ]
    )
    return [
        Layer(_shade(skin, 0.82), [ridge * (1 if nose["side"] > 0 else -1, 1)], lift=out * 0.6),
        Layer(
            _shade(skin, 0.88),
            _mirrored(_blob(wing * 0.62, y + 0.6, wing * 0.4, tip * 0.7)),
            lift=out * 0.6,
        ),
        Layer(_shade(skin, 1.05), [_blob(0, y - 0.5, wing * 0.62, tip)], lift=out),
        Layer(
            _shade(skin, 0.4),
            _mirrored(_blob(wing * 0.45, y + tip * 0.6, nose["hole"], nose["hole"] * 0.6, 0, -0.3)),
            lift=out * 0.8,
        ),
    ]


def _mouth(face: Values, shot: Values) -> list[Layer]:
    mouth, beard = face["mouth"], face["beard"]
    y, rx, opening = mouth["y"], mouth["rx"] * shot["face"]["wide"], max(0.8, shot["face"]["open"])
    corner, upper, low, bow = (
        y - mouth["curve"] - shot["face"]["smile"],
        y - mouth["upper"],
        y + opening + mouth["lower"],
        mouth["bow"] / 2,
    )
    middle, layers = (corner + y) / 2, []
    if beard["moustache"] > 0.72:
        hair = _both(
            (0, upper - beard["thick"]),
            (rx * 0.7, upper - beard["thick"] * 0.7),
            (rx * 1.05, y + beard["droop"]),
            (0, upper),
        )
        layers.append(Layer(_hair(face), [_smooth(hair, 1)], lift=2))
    lips = _both(
        (0, upper + bow),
        (rx * 0.3, upper - bow),
        (rx, corner),
        (rx * 0.5, low - mouth["lower"] * 0.1),
        (0, low),
    )
    layers.append(Layer(_pick(LIPS, mouth["colour"]), [_smooth(lips, 1)]))
    layers.append(
        Layer(
            (70, 20, 26),
            [_both((0, y), (rx * 0.85, middle), (rx * 0.45, y + opening * 0.9), (0, y + opening))],
        )
    )
    if opening > 2:
        layers.append(
            Layer((240, 236, 226), [_both((rx * 0.6, middle + 0.3), (rx * 0.5, y + opening * 0.4))])
        )
    return layers


def _eyes(face: Values, shot: Values) -> list[Layer]:
    eye, iris, brow, gaze, mood = (
        face["eye"],
        face["iris"],
        face["brow"],
        shot["gaze"],
        shot["face"],
    )
    x, y, rx, ry, lash = eye["x"], eye["y"], eye["rx"], eye["ry"] * mood["eyes"], iris["lash"]
    layers = (
        [Layer(_shade(_skin(face), 0.8), _mirrored(_blob(x, y + eye["ry"] * 0.9, rx, 2.6)))]
        if iris["bags"] > 0.6
        else []
    )
    lids = _blob(x, y - lash * 0.7, rx + lash * 0.6, ry + lash * 0.5, eye["square"], eye["slant"])
    layers += [
        Layer((34, 24, 26), _mirrored(lids)),
        Layer((246, 244, 240), _mirrored(_blob(x, y, rx, ry, eye["square"], eye["slant"]))),
    ]
    size, height, look = (
        min(iris["size"], rx),
        min(iris["size"], ry),
        y + gaze["y"] * mood["eyes"] * 0.6,
    )
    for part, colour in ((1.0, _pick(IRISES, iris["colour"])), (0.47, (10, 10, 12))):
        layers.append(
            Layer(
                colour,
                [_blob(gaze["x"] + side * x, look, size * part, height * part) for side in (-1, 1)],
            )
        )
    half, bx, by, thick = (
        brow["length"],
        x + brow["in"],
        y - eye["ry"] - brow["gap"] - mood["brows"],
        brow["thick"],
    )
    lean = (brow["slant"] + mood["frown"]) * half
    upper = [(bx - half, by + lean), (bx, by - brow["arch"]), (bx + half, by - lean)]
    lower = [
        (bx + half, by - lean + thick * 0.3),
        (bx, by - brow["arch"] + thick),
        (bx - half, by + lean + thick),
    ]
    return [
        *layers,
        Layer(_shade(_hair(face), brow["shade"]), _mirrored(np.array(upper + lower)), lift=1),
    ]


def _top(face: Values, shot: Values) -> list[Layer]:
    """Hair and glasses."""
    head, hair, volume, glasses = face["head"], face["hair"], face["volume"], face["glasses"]
    w, top, side, left, right = (
        head["width"],
        head["top"],
        volume["side"],
        volume["left"],
        volume["right"],
    )
    layers = []
    if hair["bald"] > 0.12:
        outer = [
            (-w - 2, side),
            (-w - left, -16),
            (-w * 0.8 - left, -top * 0.85),
            (volume["tilt"], -top - volume["top"]),
        ]
        outer += [(w * 0.8 + right, -top * 0.85), (w + right, -16), (w + 2, side)]
        line = [
            (w * (0.64 - 0.32 * i) + shot["gaze"]["sway"] * 0.7, y)
            for i, y in enumerate(face["hairline"].values())
        ]
        points = _smooth(
            np.array([*outer, (w - 3, side), (w - 4, -14), *line, (4 - w, -14), (3 - w, side)])
        )
        # Curls: every other point of the outline moves out.
        points[::2] *= 1 + max(0.0, hair["curl"])
        layers.append(Layer(_hair(face), [points], lift=3))
    if glasses["worn"] > 0.68:
        x, y, thick, frame = (
            face["eye"]["x"],
            face["eye"]["y"],
            glasses["thick"] / 2,
            _pick(FRAMES, glasses["colour"]),
        )
        rx = min(glasses["rx"], x - 2)
        # A polygon inside another is a hole.
        rims = [
            _blob(x, y + 1, rx + out, glasses["ry"] + out, glasses["square"])
            for out in (thick, -thick)
        ]
        layers.append(Layer(frame, [side for rim in rims for side in _mirrored(rim)], lift=5))
        layers.append(Layer(frame, [_blob(0, y, x - rx, thick, 1)], lift=5))
    return layers


def _hiding(face: Values, shot: Values, u: Sequence[float]) -> list[Layer]:
    """What covers a part of the face in a third of the images."""
    hide, eye, colour = shot["hide"], face["eye"], _paint(u)
    kind, x, y, turn = hide["kind"], hide["x"], hide["y"], hide["turn"]
    if kind < 0.05:
        lenses = _mirrored(_blob(eye["x"], eye["y"] + 1, eye["x"] - 2, 8, hide["square"]))
        return [Layer(_shade(colour, 0.3), [*lenses, _blob(0, eye["y"], 4, 1.5)], lift=5)]
    if kind < 0.09:
        return [
            Layer(
                colour, [_smooth(_both((0, 8), (27, 12), (34, 18), (24, 38), (0, 52)), 1)], lift=4
            )
        ]
    if kind < 0.14:
        brim = -face["head"]["top"] + 12 + hide["rx"] * 0.6
        return [
            Layer(colour, [_both((30, -62), (46, brim - 10), (46, brim), (0, brim + 2))], lift=4)
        ]
    if kind < 0.32:
        layers = [
            Layer(colour, [_blob(x, y, hide["rx"], hide["ry"], hide["square"], turn)], lift=12)
        ]
        return (
            layers
            if kind < 0.26
            else [*layers, Layer(_paint(u[3:]), [_blob(-x, y - 20, 3, 60, 1, turn)], lift=12)]
        )
    return []


# The camera.


def _turn(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine without a cosine."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _draw(canvas: Image, layers: Sequence[Layer], pose: dict[str, float]) -> None:
    """Turns, projects and paints all layers."""
    polygons = [polygon for layer in layers for polygon in layer.polygons]
    lengths = [len(polygon) for polygon in polygons]
    lift, dome = np.repeat(
        [(layer.lift, layer.dome) for layer in layers for _ in layer.polygons], lengths, axis=0
    ).T
    x, y = np.concatenate(polygons).T
    u, v = x / DOME[0], y / DOME[1]
    z = lift + dome * DOME[2] * np.sqrt(np.maximum(0, 1 - u * u - v * v))
    cos, sin = _turn(pose["yaw"])
    x, z = x * cos + z * sin, z * cos - x * sin
    cos, sin = _turn(pose["pitch"])
    y = y * cos + z * sin
    cos, sin = _turn(pose["roll"])
    x, y = (
        (x * cos - y * sin) * pose["scale"] + pose["x"],
        (x * sin + y * cos) * pose["scale"] + pose["y"] + HEAD_Y,
    )
    px, one = len(canvas), 1 << SUBPIXEL_BITS
    points = np.rint((np.stack([x, y], 1) / FRAME_PX + 0.5) * (px * one) - one // 2).astype(
        np.int32
    )
    start = 0
    for layer in layers:
        parts = []
        for polygon in layer.polygons:
            parts.append(points[start : start + len(polygon)])
            start += len(polygon)
        cv2.fillPoly(canvas, parts, layer.colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _expose(canvas: Image, shot: Values, stream_key: int) -> Image:
    """Tone curve, colour cast, directional light, blur, noise: all in integers."""
    light, camera, px = shot["light"], shot["camera"], len(canvas)
    if light["gray"] < 0.08:
        gray = (canvas.astype(np.uint16) * np.array([77, 150, 29], np.uint16)).sum(
            2, dtype=np.uint16
        ) >> 8
        canvas = np.repeat(gray.astype(np.uint8)[:, :, None], 3, 2)
    ramp = np.arange(256)
    tone = ramp + ramp * (255 - ramp) * int(light["curve"] * 128) // (255 * 128)
    channels = [np.minimum(tone * int(gain * 256) // 256, 255) for gain in shot["cast"].values()]
    canvas = cv2.LUT(canvas, np.stack(channels, 1).astype(np.uint8)[:, None])
    # The field of light has 7 fractional bits; a deep shadow is a steep ramp, cut at both ends.
    steep = 192 if light["shadow"] < 0.2 else 58
    middle = np.arange(px) * 2 - px
    across, down = middle * int(light["x"] * steep) // px, middle * int(light["y"] * steep) // px
    field = np.maximum(np.minimum(down[:, None] + np.repeat(across, 3), 60), -60) + int(
        118 + light["level"] * 34
    )
    lit = canvas.reshape(px, px * 3).astype(np.uint16) * field.astype(np.uint16) >> 7
    canvas = np.minimum(lit, 255).astype(np.uint8).reshape(px, px, 3)
    size = (0, 0, 3, 3, 3, 5)[int(camera["blur"] * 6)]
    if size:
        canvas = cv2.GaussianBlur(canvas, (size, size), 0)
    counters = np.arange(NOISE_COUNTER, NOISE_COUNTER + (canvas.size + 7) // 8, dtype=np.uint64)
    # Little-endian by name, so that the bytes come in one order everywhere.
    grain = (
        words(stream_key, counters)
        .astype("<u8", copy=False)
        .view(np.uint8)[: canvas.size]
        .astype(np.int16)
    )
    noisy = canvas.reshape(-1) + ((grain - 128) * int(camera["noise"] * camera["noise"] * 30) >> 7)
    return np.maximum(np.minimum(noisy, 255), 0).astype(np.uint8).reshape(px, px, 3)
