"""The numbers from which a face is drawn: an identity's traits and an image's conditions.

Both come from `configs.rng`, so they are pure functions of (seed, identity) and (seed, identity,
image). Lengths are in pixels of a 112 px frame from the middle of the head: x right, y down, z
towards the viewer.
"""

import numpy as np

from manyfaces.configs.rng import key, uniform

Ranges = dict[str, dict[str, tuple[float, float]]]
Values = dict[str, dict[str, float]]

# Streams of random numbers. They never change, or all faces do.
TRAITS_STREAM, CONDITIONS_STREAM, PICTURE_STREAM, QUALITY_STREAM = 1, 2, 3, 4

# Uniform ranges. A number's place in them is its counter in the stream: append only, or all faces
# change. Those of (0, 1) choose whether and which.
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


def traits(seed: int, identity: int) -> Values:
    """Draw what an identity looks like, the same in all its images."""
    return _draw_values(TRAITS, key(seed, TRAITS_STREAM, identity))


def conditions(seed: int, identity: int, image: int) -> Values:
    """Draw how one image was taken."""
    return _draw_values(CONDITIONS, key(seed, CONDITIONS_STREAM, identity, image))


def _draw_values(ranges: Ranges, stream_key: int) -> Values:
    count = sum(len(names) for names in ranges.values())
    numbers = iter(uniform(stream_key, np.arange(count, dtype=np.uint64)).tolist())
    return {
        group: {name: low + (high - low) * next(numbers) for name, (low, high) in names.items()}
        for group, names in ranges.items()
    }
