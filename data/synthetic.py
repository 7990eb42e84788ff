"""Made identities: cartoon faces that a recogniser can learn, for demos and tests where no real face may go.

A face is drawn from two sets of uniform numbers, the identity's traits and the image's conditions; both come from `configs.counter`, so
an image is a pure function of (seed, identity, image). Its bytes are the same on any machine: geometry uses only + - * / and sqrt, which
IEEE rounds alike everywhere (no pow, no matmul, sines from a rounded table), and is rounded to 1/8 pixel before OpenCV draws it in fixed
point; light, blur and noise are integer arithmetic.

Lengths are in pixels of a 112 px frame from the middle of the head: x right, y down, z towards the viewer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.counter import key, uniform, words

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Ranges = dict[str, dict[str, tuple[float, float]]]
Values = dict[str, dict[str, float]]

FRAME_PX = 112
HEAD_Y = 2.0
"""The middle of the head stands this much below the middle of the frame."""
DOME = (40.0, 50.0, 30.0)
"""Half axes of the ellipsoid that carries the features: turning the head moves them by their depth."""
SUBPIXEL_BITS = 3

# Uniform ranges. Their order is the counter: append only, or all faces change. Those of (0, 1) choose among kinds.
TRAITS: Ranges = {
    "head": {"width": (28, 40), "cheek": (0.86, 1.06), "jaw": (0.6, 1), "chin_width": (0.12, 0.65), "chin": (38, 51), "top": (38, 47)},
    "skin": {"tone": (0, 1), "hue": (-16, 16), "blush": (0, 1), "freckles": (0, 1), "mole": (0, 1), "mole_x": (-26, 26), "mole_y": (6, 34)},
    "ear": {"size": (4, 11), "y": (-6, 8), "out": (-1, 5), "ring": (0, 1), "ring_size": (1.5, 4)},
    "eye": {"x": (11, 19), "y": (-14, -2), "rx": (4.2, 9), "ry": (1.8, 5.5), "slant": (-0.4, 0.4), "square": (-0.3, 0.5)},
    "iris": {"size": (2, 4.4), "colour": (0, 1), "bags": (0, 1), "lash": (0.4, 2.4)},
    "brow": {"gap": (2.5, 8), "thick": (0.8, 4.8), "length": (4.5, 11), "slant": (-0.5, 0.5), "arch": (0, 4), "in": (-3, 3), "shade": (0.3, 1)},
    "nose": {"y": (5, 17), "wing": (3.2, 10), "tip": (2, 5.5), "bridge": (0.5, 4), "hole": (0.6, 2.4), "out": (3, 12), "side": (-1, 1)},
    "mouth": {"y": (21, 32), "rx": (6, 17), "upper": (0.8, 4.2), "lower": (1, 6), "curve": (-3, 3), "bow": (0, 2), "colour": (0, 1)},
    "hair": {"bald": (0, 1), "colour": (0, 1), "shade": (0.6, 1.1), "long": (-1, 1), "wide": (0, 13), "curl": (-0.1, 0.1), "side": (-14, 20)},
    "volume": {"left": (1, 12), "top": (1, 14), "right": (1, 12), "tilt": (-9, 9)},
    "hairline": {"far_left": (-38, -15), "left": (-38, -15), "middle": (-38, -15), "right": (-38, -15), "far_right": (-38, -15)},
    "beard": {"kind": (0, 1), "top": (4, 26), "gap": (4, 10), "ink": (0.35, 1), "moustache": (0, 1), "thick": (1.5, 5), "droop": (-2, 6)},
    "glasses": {"worn": (0, 1), "rx": (7, 13), "ry": (5, 11), "square": (-0.1, 0.9), "colour": (0, 1), "thick": (0.8, 2.4)},
}
CONDITIONS: Ranges = {
    "pose": {"roll": (-0.1, 0.1), "x": (-5, 5), "y": (-5, 5), "scale": (0.94, 1.16), "yaw": (-0.2, 0.2), "pitch": (-0.12, 0.12)},
    "face": {"smile": (-3, 4), "open": (-5, 8), "wide": (0.85, 1.15), "eyes": (0.35, 1.2), "brows": (-2, 3), "frown": (-0.2, 0.2)},
    "gaze": {"x": (-2, 2), "y": (-1.2, 1.2), "sway": (-2.5, 2.5)},
    "light": {"x": (-1, 1), "y": (-1, 1), "shadow": (0, 1), "level": (-1, 1), "curve": (-0.7, 0.7), "gray": (0, 1)},
    "cast": {"red": (0.74, 1.26), "green": (0.78, 1.22), "blue": (0.7, 1.3)},
    "hide": {"kind": (0, 1), "x": (-30, 30), "y": (-30, 38), "rx": (5, 14), "ry": (5, 14), "turn": (-0.6, 0.6), "square": (-0.2, 1)},
    "camera": {"blur": (0, 1), "noise": (0, 1), "quality": (50, 96)},
}
SKINS = ((255, 226, 205), (240, 196, 164), (214, 160, 120), (168, 114, 80), (104, 68, 50))
HAIRS = ((28, 24, 26), (66, 42, 30), (118, 72, 40), (160, 62, 34), (216, 112, 44), (230, 188, 104), (238, 226, 200), (150, 150, 154), (70, 110, 140))
IRISES = ((52, 32, 22), (108, 66, 32), (70, 120, 70), (60, 110, 180), (120, 140, 150), (30, 24, 24))
LIPS = ((196, 96, 96), (168, 76, 84), (204, 40, 60), (140, 60, 70), (220, 128, 120), (120, 50, 90))
FRAMES = ((24, 24, 28), (120, 60, 30), (190, 30, 40), (40, 70, 160), (200, 190, 160), (230, 230, 235))


def traits(seed: int, identity: int) -> Values:
    """What an identity looks like, the same in all its images."""
    return _draws(TRAITS, key(seed, 1, identity))


def conditions(seed: int, identity: int, image: int) -> Values:
    """How one image was taken."""
    return _draws(CONDITIONS, key(seed, 2, identity, image))


def render(seed: int, identity: int, image: int, px: int = FRAME_PX) -> Image:
    """One image, RGB [px, px, 3]."""
    face, shot = traits(seed, identity), conditions(seed, identity, image)
    scene = uniform(key(seed, 3, identity, image), np.arange(48, dtype=np.uint64))
    marks = uniform(key(seed, 4, identity), np.arange(24, dtype=np.uint64)).reshape(-1, 2)
    canvas = np.empty((px, px, 3), np.uint8)
    canvas[:] = _colour(scene[:3])
    _draw(canvas, _backdrop(scene[3:27].reshape(4, 6)), np.array([1.0, 0, 0, 0, 0, 0]))
    _draw(canvas, _behind(face, shot, scene[27:30]) + _head(face, shot, marks) + _front(face, shot) + _hiding(face, shot, scene[30:36]), _pose(shot))
    return _expose(canvas, shot, key(seed, 5, identity, image))


def encode(seed: int, identity: int, image: int) -> bytes:
    """One image as JPEG bytes."""
    quality = int(conditions(seed, identity, image)["camera"]["quality"])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    written, data = cv2.imencode(".jpg", cv2.cvtColor(render(seed, identity, image), cv2.COLOR_RGB2BGR), options)
    assert written
    return bytes(data)


def _draws(ranges: Ranges, stream_key: int) -> Values:
    numbers = iter(uniform(stream_key, np.arange(sum(map(len, ranges.values())), dtype=np.uint64)).tolist())
    return {group: {name: lo + (hi - lo) * next(numbers) for name, (lo, hi) in names.items()} for group, names in ranges.items()}


# Shapes: polygons [N, 2] in layers, drawn from the back to the front.


class Layer(NamedTuple):
    colour: Colour
    polygons: Sequence[Array]
    lift: float = 0.0
    """Depth beyond the dome, or from the head's middle where `dome` is 0."""
    dome: float = 1.0


_ANGLES = np.arange(16) * (np.pi / 8)
# Rounded, so that no machine's sine shows.
CIRCLE_N2: Array = np.round(np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1), 6)
SQUARE_N2: Array = np.round(CIRCLE_N2 / np.abs(CIRCLE_N2).max(1, keepdims=True), 6)


def _blob(x: float, y: float, rx: float, ry: float, square: float = 0.0, slant: float = 0.0) -> Array:
    """An ellipse; `square` 1 makes it a rectangle and below 0 pinches it, `slant` raises its right end."""
    points = CIRCLE_N2 * (1 - square) + SQUARE_N2 * square if square else CIRCLE_N2
    points = points * (rx, ry)
    points[:, 1] -= points[:, 0] * slant
    return points + (x, y)


def _smooth(points: Array, rounds: int = 2) -> Array:
    """Chaikin's corner cutting of a closed polygon."""
    for _ in range(rounds):
        after = np.concatenate([points[1:], points[:1]])
        points = np.stack([points * 0.75 + after * 0.25, points * 0.25 + after * 0.75], 1).reshape(-1, 2)
    return points


def _both(right: Sequence[tuple[float, float]]) -> Array:
    """A symmetric polygon from its right half, top to bottom."""
    half = np.array(right)
    return np.concatenate([half, half[::-1] * (-1, 1)])


def _mirrored(polygon: Array) -> list[Array]:
    return [polygon, polygon * (-1, 1)]


def _mix(a: Colour, b: Colour, weight: float) -> Colour:
    return (int(a[0] + (b[0] - a[0]) * weight), int(a[1] + (b[1] - a[1]) * weight), int(a[2] + (b[2] - a[2]) * weight))


def _shade(colour: Colour, factor: float) -> Colour:
    return (min(255, int(colour[0] * factor)), min(255, int(colour[1] * factor)), min(255, int(colour[2] * factor)))


def _pick(colours: Sequence[Colour], u: float) -> Colour:
    """From the palette, between neighbours."""
    place = u * (len(colours) - 1)
    return _mix(colours[int(place)], colours[int(place) + 1], place - int(place))


def _colour(u: Array) -> Colour:
    return (int(u[0] * 256), int(u[1] * 256), int(u[2] * 256))


def _skin(face: Values) -> Colour:
    red, green, blue = _pick(SKINS, face["skin"]["tone"])
    hue = int(face["skin"]["hue"])
    return (red, min(255, green + hue // 3), min(255, max(0, blue - hue)))


def _hair(face: Values) -> Colour:
    return _shade(_pick(HAIRS, face["hair"]["colour"]), face["hair"]["shade"])


def _backdrop(scene: Array) -> list[Layer]:
    """Whatever stands behind a person: large patches."""
    return [Layer(_colour(u[3:]), [_blob(u[0] * 130 - 65, u[1] * 130 - 65, 10 + u[2] * 40, 10 + u[5] * 60, u[4])], dome=0) for u in scene]


def _behind(face: Values, shot: Values, cloth: Array) -> list[Layer]:
    head, hair, ear, skin = face["head"], face["hair"], face["ear"], _skin(face)
    layers = []
    if hair["bald"] > 0.12 and hair["long"] > -0.1:
        width, low = head["width"] + hair["wide"], 14 + hair["long"] * 48
        back = _both([(0, -head["top"]), (width * 0.8, -head["top"] * 0.8), (width + 1, 0), (width, low), (0, low)])
        layers.append(Layer(_shade(_hair(face), 0.72), [_smooth(back) + (shot["gaze"]["sway"], 0)], lift=-14, dome=0))
    neck, chin = head["width"] * (0.4 + head["jaw"] * 0.35), head["chin"]
    layers.append(Layer(_shade(skin, 0.76), [_both([(neck, chin * 0.4), (neck + 1, 75)])], lift=-8, dome=0))
    layers.append(Layer(_colour(cloth), [_both([(neck * 0.7, chin + 8), (48, chin + 17), (60, 90)])], lift=-4, dome=0))
    outer = _blob(head["width"] + ear["out"] - 1, ear["y"], ear["size"] * 0.62, ear["size"], 0, 0.15)
    inner = _blob(head["width"] + ear["out"], ear["y"], ear["size"] * 0.3, ear["size"] * 0.55)
    layers += [Layer(_shade(skin, 0.92), _mirrored(outer), lift=-5, dome=0), Layer(_shade(skin, 0.7), _mirrored(inner), lift=-5, dome=0)]
    if ear["ring"] > 0.75:
        ring = _blob(head["width"] + ear["out"] - 1, ear["y"] + ear["size"] + ear["ring_size"] * 0.6, ear["ring_size"] * 0.8, ear["ring_size"])
        layers.append(Layer(_pick(FRAMES, (ear["ring"] - 0.75) * 3.99), _mirrored(ring), lift=-5, dome=0))
    return layers


def _head(face: Values, shot: Values, marks: Array) -> list[Layer]:
    """The head with all that lies flat on it: shading, marks, beard, mouth, nose."""
    head, skin, kinds, beard = face["head"], _skin(face), face["skin"], face["beard"]
    w, chin, top = head["width"], head["chin"], head["top"]
    jaw = [(w * head["cheek"], 14.0), (w * head["jaw"], chin * 0.7), (w * head["chin_width"], chin * 0.99)]
    layers = [Layer(skin, [_smooth(_both([(0, -top), (w * 0.66, -top * 0.93), (w * 0.97, -top * 0.5), (w, -2), *jaw, (0, chin)]))], dome=0)]
    if kinds["blush"] > 0.7:
        layers.append(Layer(_mix(skin, (220, 70, 70), kinds["blush"] - 0.55), _mirrored(_blob(w * 0.56, 12, 7, 5))))
    if kinds["freckles"] > 0.65:
        spots = marks[: 4 + int(kinds["freckles"] * 8)] * (44, 18) + (-22, 2)
        layers.append(Layer(_mix(skin, (110, 60, 30), 0.5), [_blob(x, y, 1.1, 1.1) for x, y in spots]))
    hair = _hair(face)
    if beard["kind"] > 0.62:
        # A goatee around the chin, or a full beard along the jaw; both with a gap for the mouth drawn after.
        reach = 0.45 if beard["kind"] < 0.75 else 1.0
        edge = [(x * reach, y) for x, y in jaw]
        inner = [(beard["gap"] * reach, beard["top"] + 6), (w * 0.7 * reach, beard["top"])]
        layers.append(Layer(_mix(skin, hair, beard["ink"]), [_smooth(_both([*inner, *edge, (0, chin + 3)]), 1)], dome=0.5))
    return layers + _nose(face, skin) + _mouth(face, shot, hair) + _mole(face, skin)


def _mole(face: Values, skin: Colour) -> list[Layer]:
    kinds = face["skin"]
    if kinds["mole"] < 0.6:
        return []
    size = 0.8 + (kinds["mole"] - 0.6) * 4
    return [Layer(_mix(skin, (50, 26, 20), 0.8), [_blob(kinds["mole_x"], kinds["mole_y"], size, size)])]


def _nose(face: Values, skin: Colour) -> list[Layer]:
    nose, eye = face["nose"], face["eye"]
    y, wing, bridge = nose["y"], nose["wing"], nose["bridge"]
    # One side of the ridge lies in shade.
    side = 1.0 if nose["side"] > 0 else -1.0
    shade = np.array([(bridge * 0.3, eye["y"] + 1), (bridge, eye["y"] + 3), (wing, y - 1), (wing * 0.8, y + nose["tip"] * 0.6), (0, y + nose["tip"])])
    tip = _blob(0, y - 0.5, wing * 0.62, nose["tip"])
    wings = _blob(wing * 0.62, y + 0.6, wing * 0.4, nose["tip"] * 0.7)
    holes = _blob(wing * 0.45, y + nose["tip"] * 0.6, nose["hole"], nose["hole"] * 0.6, 0, -0.3)
    return [
        Layer(_shade(skin, 0.82), [shade * (side, 1)], lift=nose["out"] * 0.6),
        Layer(_shade(skin, 0.88), _mirrored(wings), lift=nose["out"] * 0.6),
        Layer(_shade(skin, 1.05), [tip], lift=nose["out"]),
        Layer(_shade(skin, 0.4), _mirrored(holes), lift=nose["out"] * 0.8),
    ]


def _mouth(face: Values, shot: Values, hair: Colour) -> list[Layer]:
    mouth, expression, beard = face["mouth"], shot["face"], face["beard"]
    y, rx, opening = mouth["y"], mouth["rx"] * expression["wide"], max(0.0, expression["open"])
    corner, upper, lower = y - mouth["curve"] - expression["smile"], mouth["upper"], mouth["lower"]
    layers = []
    if beard["moustache"] > 0.72:
        thick, end = beard["thick"], (rx * 1.05, y + beard["droop"])
        layers.append(Layer(hair, [_smooth(_both([(0, y - upper - thick), (rx * 0.7, y - upper - thick * 0.7), end, (0, y - upper)]), 1)], lift=2))
    lips = [(0, y - upper + mouth["bow"] * 0.5), (rx * 0.3, y - upper - mouth["bow"] * 0.5), (rx, corner), (rx * 0.5, y + opening + lower * 0.9)]
    layers.append(Layer(_pick(LIPS, mouth["colour"]), [_smooth(_both([*lips, (0, y + opening + lower)]), 1)]))
    inside = _both([(0, y), (rx * 0.85, (corner + y) / 2), (rx * 0.45, y + max(0.6, opening) * 0.9), (0, y + max(0.8, opening))])
    layers.append(Layer((70, 20, 26), [inside]))
    if opening > 2:
        layers.append(Layer((240, 236, 226), [_both([(rx * 0.6, (corner + y) / 2 + 0.3), (rx * 0.5, y + opening * 0.4)])]))
    return layers


def _front(face: Values, shot: Values) -> list[Layer]:
    """Eyes, brows, hair and glasses."""
    eye, iris, brow, expression = face["eye"], face["iris"], face["brow"], shot["face"]
    x, y, rx, ry, hair = eye["x"], eye["y"], eye["rx"], eye["ry"] * expression["eyes"], _hair(face)
    layers = []
    if iris["bags"] > 0.6:
        layers.append(Layer(_shade(_skin(face), 0.8), _mirrored(_blob(x, y + eye["ry"] * 0.9, rx, 2.6))))
    lids = _blob(x, y - iris["lash"] * 0.7, rx + iris["lash"] * 0.6, ry + iris["lash"] * 0.5, eye["square"], eye["slant"])
    layers += [Layer((34, 24, 26), _mirrored(lids)), Layer((246, 244, 240), _mirrored(_blob(x, y, rx, ry, eye["square"], eye["slant"])))]
    size, height = min(iris["size"], rx), min(iris["size"], ry)
    looks = [(side * x + shot["gaze"]["x"], y + shot["gaze"]["y"] * expression["eyes"] * 0.6) for side in (-1, 1)]
    layers.append(Layer(_pick(IRISES, iris["colour"]), [_blob(ex, ey, size, height) for ex, ey in looks]))
    layers.append(Layer((10, 10, 12), [_blob(ex, ey, size * 0.45, height * 0.5) for ex, ey in looks]))
    inner, outer = x + brow["in"] - brow["length"], x + brow["in"] + brow["length"]
    by, lean = y - eye["ry"] - brow["gap"] - expression["brows"], (brow["slant"] + expression["frown"]) * brow["length"]
    ridge = [(inner, by + lean), (x + brow["in"], by - brow["arch"]), (outer, by - lean)]
    under = [(px, py + brow["thick"] * (0.3 if px == outer else 1)) for px, py in reversed(ridge)]
    layers.append(Layer(_shade(hair, brow["shade"]), _mirrored(np.array(ridge + under)), lift=1))
    if face["hair"]["bald"] > 0.12:
        layers.append(Layer(hair, [_hair_shape(face, shot["gaze"]["sway"])], lift=3))
    glasses = face["glasses"]
    if glasses["worn"] > 0.68:
        gx, gy, thick, frame = min(glasses["rx"], x - 2), glasses["ry"], glasses["thick"], _pick(FRAMES, glasses["colour"])
        # A polygon inside another is a hole.
        rims = [_blob(x, y + 1, gx + out, gy + out, glasses["square"]) for out in (thick * 0.5, thick * -0.5)]
        layers.append(Layer(frame, [side for rim in rims for side in _mirrored(rim)], lift=5))
        layers.append(Layer(frame, [_blob(0, y, x - gx, thick * 0.5, 1)], lift=5))
    return layers


def _hair_shape(face: Values, sway: float) -> Array:
    head, hair, volume = face["head"], face["hair"], face["volume"]
    w, top, side = head["width"], head["top"], hair["side"]
    outer = [(-w - 2, side), (-w - volume["left"], -16), (-w * 0.8 - volume["left"], -top * 0.85), (volume["tilt"], -top - volume["top"])]
    outer += [(w * 0.8 + volume["right"], -top * 0.85), (w + volume["right"], -16), (w + 2, side)]
    line = [(w * (0.64 - 0.32 * i) + sway * 0.7, height) for i, height in enumerate(face["hairline"].values())]
    points = _smooth(np.array([*outer, (w - 3, side), (w - 4, -14), *line, (4 - w, -14), (3 - w, side)]))
    # Curls: every other point of the outline moves outwards or inwards.
    points[::2] *= 1 + max(0.0, hair["curl"])
    return points


def _hiding(face: Values, shot: Values, u: Array) -> list[Layer]:
    """What covers a part of the face in some images."""
    hide, eye, colour = shot["hide"], face["eye"], _colour(u)
    kind = hide["kind"]
    if kind < 0.05:  # sunglasses
        return [Layer(_shade(colour, 0.3), [*_mirrored(_blob(eye["x"], eye["y"] + 1, eye["x"] - 2, 8, hide["square"])), _blob(0, eye["y"], 4, 1.5)], lift=5)]
    if kind < 0.09:  # a mask
        return [Layer(colour, [_smooth(_both([(0, 8), (27, 12), (34, 18), (24, 38), (0, 52)]), 1)], lift=4)]
    if kind < 0.14:  # a hat or a headband
        low = -face["head"]["top"] + 12 + hide["rx"] * 0.6
        return [Layer(colour, [_both([(30, -62), (46, low - 10), (46, low), (0, low + 2)])], lift=4)]
    if kind < 0.32:  # a hand, a microphone, a stranger's shoulder
        layers = [Layer(colour, [_blob(hide["x"], hide["y"], hide["rx"], hide["ry"], hide["square"], hide["turn"])], lift=12)]
        return layers if kind < 0.26 else [*layers, Layer(_colour(u[3:]), [_blob(-hide["x"], hide["y"] - 20, 3, 60, 1, hide["turn"])], lift=12)]
    return []


# Camera.


def _turn(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine without a cosine."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _pose(shot: Values) -> Array:
    pose = shot["pose"]
    return np.array([pose["scale"], pose["roll"], pose["x"], pose["y"] + HEAD_Y, pose["yaw"], pose["pitch"]])


def _draw(canvas: Image, layers: Sequence[Layer], pose: Array) -> None:
    """Turns, projects and paints all layers."""
    scale, roll, dx, dy, yaw, pitch = pose.tolist()
    polygons = [polygon for layer in layers for polygon in layer.polygons]
    lengths = [len(polygon) for polygon in polygons]
    lift, dome = np.repeat([(layer.lift, layer.dome) for layer in layers for _ in layer.polygons], lengths, axis=0).T
    x, y = np.concatenate(polygons).T
    z = lift + dome * DOME[2] * np.sqrt(np.maximum(0, 1 - (x / DOME[0]) * (x / DOME[0]) - (y / DOME[1]) * (y / DOME[1])))
    cos, sin = _turn(yaw)
    x, z = x * cos + z * sin, z * cos - x * sin
    cos, sin = _turn(pitch)
    y = y * cos + z * sin
    cos, sin = _turn(roll)
    x, y = (x * cos - y * sin) * scale + dx, (x * sin + y * cos) * scale + dy
    px = len(canvas)
    points = np.rint((np.stack([x, y], 1) / FRAME_PX + 0.5) * (px << SUBPIXEL_BITS) - (1 << SUBPIXEL_BITS) // 2).astype(np.int32)
    done = np.split(points, np.cumsum(lengths)[:-1])
    for layer in layers:
        parts, done = done[: len(layer.polygons)], done[len(layer.polygons) :]
        cv2.fillPoly(canvas, parts, layer.colour, cv2.LINE_AA, SUBPIXEL_BITS)


def _expose(canvas: Image, shot: Values, stream_key: int) -> Image:
    """Tone curve, colour cast, directional light, blur, noise: all in integers."""
    light, cast, camera, px = shot["light"], shot["cast"], shot["camera"], len(canvas)
    if light["gray"] < 0.08:
        gray = (canvas.astype(np.uint16) * np.array([77, 150, 29], np.uint16)).sum(2, dtype=np.uint16) >> 8
        canvas = np.repeat(gray.astype(np.uint8)[:, :, None], 3, 2)
    ramp = np.arange(256)
    tone = ramp + ramp * (255 - ramp) * int(light["curve"] * 128) // (255 * 128)
    channels = [tone * int(cast[name] * 256) // 256 for name in ("red", "green", "blue")]
    canvas = cv2.LUT(canvas, np.clip(np.stack(channels, 1), 0, 255).astype(np.uint8)[:, None])
    # The field of light has 7 fractional bits; a deep shadow is a steep ramp, cut at both ends.
    steep = 3.0 if light["shadow"] < 0.2 else 0.9
    middle = np.arange(px) * 2 - px
    slope = (middle * int(light["x"] * steep * 64)) // px, (middle * int(light["y"] * steep * 64)) // px
    field = np.clip(slope[1][:, None] + np.repeat(slope[0], 3)[None], -60, 60) + int(118 + light["level"] * 34)
    flat = canvas.reshape(px, px * 3).astype(np.uint16) * field.astype(np.uint16) >> 7
    canvas = np.minimum(flat, 255).astype(np.uint8).reshape(px, px, 3)
    size = (0, 0, 3, 3, 3, 5)[int(camera["blur"] * 6)]
    if size:
        canvas = cv2.GaussianBlur(canvas, (size, size), 0)
    grain = words(stream_key, np.arange((px * px * 3 + 7) // 8, dtype=np.uint64)).view(np.uint8)[: px * px * 3].astype(np.int16)
    noisy = canvas.reshape(-1) + ((grain - 128) * int(camera["noise"] * camera["noise"] * 30) >> 7)
    return np.clip(noisy, 0, 255).astype(np.uint8).reshape(px, px, 3)
